import sys

from tests.bench.program import main

sys.exit(main())
