# SPDX-License-Identifier: Apache-2.0
"""The subcommands of ``python -m pydet``: each has ``add_arguments(parser)`` and ``run(args)``."""
