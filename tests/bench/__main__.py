import sys

from tests.bench.bench_failover import main

sys.exit(main())
