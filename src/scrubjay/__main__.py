"""`python -m scrubjay`: the command, for environments whose PATH lacks the `scrubjay` script."""

import sys

from scrubjay.experiments.commands.main import main

sys.exit(main())
