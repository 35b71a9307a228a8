"""The agent's mind: ``Core.step(event, now)`` returns commands. No I/O, no clock, no threads.

One object, in layers that each know those before them:

    base            state, timers, requests, firing a trigger, the fence and the guard
    reading         what is read of the cluster, and what is learnt from it
    sessions        joining, heartbeats, expiry
    worth           what the local Redis's data are worth, and what the state file keeps of it
    following       freezing, following, saving a diverged tail
    leading         the lifted fence, the replicas that writes wait for
    local_redis     the local Redis: its life and its health
    rounds          freeze, ballot, verdict, claim
    takeover        promote, serve
    handover        both sides of a planned change
    orders          what operators ask, and what they are answered
    leaving         SIGTERM, SIGUSR2
    considering     what the view asks for
    agent           ``Core``: events in, timers, commands out

What follows from what is in the table of ``redis_agent.machine``. The methods named there only order commands.
"""
