"""The simulator: several real cores against a simulated ZooKeeper and Redis, under seeds, in virtual time.

* `world`: virtual time, the dice, the network. `process`: what SIGSTOP and SIGKILL do.
* `zookeeper`, `zk_tree`, `zk_leader`, `zk_server`: the ensemble. `zk_client`, `zk_read`: the adapter on top of it.
* `clock`: every host's own; what rates are assumed.
* `redis`, `redis_replication`, `redis_saving`, `redis_data`: redis-server 7.0, and its `watcher`. `guard`: its parent.
* `redis_life`, `redis_adapter`: the Redis adapter on top of them.
* `agent`: a host with its agent: one core, bound to these adapters. `clients`: applications.
* `faults`, `faults_aimed`, `aimed`, `zk_faults` break things, `nemesis` draws them; `boundaries` strikes at every
  command in turn. `checker` looks at the invariants (`one_writer`, `testimony`: parts of it), `excuses` says what they
  do not cover.
* `cluster` puts it all together, `run` runs seeds, `workers` spreads them over processes, `tally` adds up what came of
  them, `transcript` tells one; `scenario` is what directed tests are told with.

The contract tests (tests/contract) run on the fakes and on the real servers. Nothing here may depend on the wall clock,
on threads, or on the order of a set.
"""
