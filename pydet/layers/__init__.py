# SPDX-License-Identifier: Apache-2.0
"""Parts of networks that more than one detector uses."""
