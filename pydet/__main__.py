# SPDX-License-Identifier: Apache-2.0
"""``python -m pydet``."""

import sys

from pydet.cli import main

sys.exit(main())
