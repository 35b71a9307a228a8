"""The simulator: several real cores against a simulated ZooKeeper and Redis, under seeds, in virtual time.

* `world`: virtual time, the dice, the network. `process`: what SIGSTOP and SIGKILL do.
* `zookeeper`, `zk_server`, `zk_client`, `zk_read`: the ensemble, and the ZooKeeper adapter on top of it.
* `redis`, `redis_replication`, `redis_data`, `redis_adapter`: redis-server 7.0, and the Redis adapter on top of it.
* `agent`: a host with its agent: one core, bound to these adapters. `clients`: applications.
* `nemesis` breaks things, `checker` looks at the invariants, `cluster` puts it all together, `run` runs seeds.

The contract tests (tests/contract) run on the fakes and on the real servers. Nothing here may depend on the wall clock,
on threads, or on the order of a set.
"""
