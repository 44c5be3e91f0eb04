"""Lets this folder's tests import its two modules, which its scripts share: `collect` and `material`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
