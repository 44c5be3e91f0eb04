"""`python -m scrubjay`: the command, where no script of it is on the path."""

import sys

from scrubjay.experiments.commands.main import main

sys.exit(main())
