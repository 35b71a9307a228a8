"""The agent's mind: ``Core.step(event, now)`` returns commands. No I/O, no clock, no threads."""
