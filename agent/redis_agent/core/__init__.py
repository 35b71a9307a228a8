"""The agent's mind: ``Core.step(event, now)`` returns commands. No I/O, no clock, no threads.

One object, in layers that each know those before them:

    base            state, timers, requests, firing a trigger, the fence
    reading         what is read of the cluster, and what is learnt from it
    sessions        joining, heartbeats, expiry
    local_redis     the local Redis: life, health, what its data are worth, following
    rounds          freeze, ballot, verdict, claim, promote, serve
    leaving         SIGTERM
    agent           ``Core``: events in, timers, what the view asks for, commands out

What follows from what is in the table of ``redis_agent.machine``. The methods named there only order commands.
"""
