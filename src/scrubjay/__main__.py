"""`python -m scrubjay`: the command, where no script of it is on the path."""

import sys

from scrubjay.experiments.cli import main

sys.exit(main())
