"""Orders: what operators ask through ZooKeeper, and what they are answered."""

from __future__ import annotations

from dataclasses import replace
from math import inf

from redis_agent import machine
from redis_agent.core.base import Goal
from redis_agent.core.handover import TAKEN_BACK, Handover
from redis_agent.core.reading import Part
from redis_agent.core.settings import CoreSettings
from redis_agent.messages import Check, Commit, CommitDone, CommitRefused, CommitUnknown, Delete, Op, Put, ZkError
from redis_agent.znodes import Order, OrderState, encode

SWITCHOVER = "switchover"
KEEP_S = 3600.0
"""How long an answered order stays for people to read, if nobody takes it away."""

SETTLING_S = 2.0
"""A replica says how far it is once a second."""
RETRY_S = 1.0
LOOK_AGAIN_S = 0.05


class Orders(Handover):
    """Only the serving leader answers, in transactions that check the ledger: an order is carried out once, or not."""

    _order_request = 0
    _order_name = ""
    _accepting: tuple[str, ...] | None = None

    def __init__(self, settings: CoreSettings) -> None:
        super().__init__(settings)
        self._failures: dict[str, str] = {}
        """By order: why the handover failed that it asked for."""
        self._unwritable: set[str] = set()
        self._orders_not_before = 0.0

    def consider_orders(self) -> None:
        """One at a time, the oldest first."""
        if not self.view.orders or self.state != machine.SERVING or self._order_request:
            return
        if self.goal is not Goal.RUN or not self.redis.lifted:
            return
        if self.now < self._orders_not_before:
            return
        for name, version in self.view.unreadable_orders.items():
            if name not in self._unwritable:
                # Nobody can carry it out, nor say so in it; it was logged when it was read.
                self.log("warning", "order_removed", name=name)
                self._write(name, Delete(self.paths.order(name), version))
                return
        known = self.view.orders.items()
        for name, order in sorted(known, key=lambda item: (item[1].at, item[0])):
            if name not in self._unwritable and self._attend_to(name, order):
                return

    def _attend_to(self, name: str, order: Order) -> bool:
        """True: something is written about it."""
        if order.state == OrderState.PENDING:
            refusal = self._refusal(order)
            stale = self.now >= self.redis.answered_at + RETRY_S
            if refusal and (stale or self.now < self.served_at + SETTLING_S):
                # Neither old news nor followers that are just attaching are a reason to refuse.
                if not self.redis.probe_request:
                    soon = self.now if stale else self.now + LOOK_AGAIN_S
                    self.arm("probe", min(self.timers.get("probe", inf), soon))
                if self.now >= self.view.presences_read_at + LOOK_AGAIN_S:
                    self.look(Part.PRESENCES)
                return True
            self._answer(name, order, refusal)
        elif order.state == OrderState.ACCEPTED:
            self._settle(name, order)
        elif order.state in OrderState.FINAL and self.wall_now - order.at > KEEP_S:
            self._write(name, Delete(self.paths.order(name), self.view.order_versions[name]))
        else:
            return False
        return True

    def _settle(self, name: str, order: Order) -> None:
        """It was accepted, and a leader serves: what was begun is over."""
        entry = self.view.ledger.entry(self.epoch)
        handed = entry is not None and entry.handover and self.epoch == order.epoch + 1
        me = self.settings.name
        if handed and (order.to in ("", me)) and entry is not None and entry.reason != TAKEN_BACK:
            self._put(name, replace(order, state=OrderState.DONE, detail=f"{me} leads since epoch {self.epoch}"))
            return
        lost = f"the leader was lost meanwhile: {me} leads since epoch {self.epoch}"
        begun = self.plan is not None and self.plan.order == name
        again = "it was broken off when the lease ended: try again" if begun else "it was not begun: try again"
        problem = again if order.epoch == self.epoch else lost
        self._put(name, replace(order, state=OrderState.FAILED, detail=self._failures.pop(name, problem)))

    def _answer(self, name: str, order: Order, refusal: str) -> None:
        if refusal:
            self.log("info", "order_refused", name=name, reason=refusal)
            self._put(name, replace(order, state=OrderState.REFUSED, detail=refusal))
            return
        self._accepting = (order.to,) if order.to else self.fit_successors()
        self._put(name, replace(order, state=OrderState.ACCEPTED, epoch=self.epoch))

    def _refusal(self, order: Order) -> str:
        if order.kind != SWITCHOVER:
            return f"this version of the agent knows no order {order.kind!r}"
        if abs(self.wall_now - order.at) > order.expires_s:
            return f"it is more than {order.expires_s:g} s old (or the clocks of the hosts differ by as much)"
        if order.to == self.settings.name:
            return f"{order.to} leads already"
        if order.epoch not in (0, self.epoch):
            return f"the leader has changed meanwhile: {self.settings.name} leads since epoch {self.epoch}"
        if order.to:
            return self.unfitness(order.to)
        if not self.fit_successors():
            others = [name for name in self.view.config.voters if name != self.settings.name]
            return "; ".join(self.unfitness(name) for name in others) or "there is no other voter"
        return ""

    def _put(self, name: str, order: Order) -> None:
        self._write(name, Put(self.paths.order(name), encode(order), self.view.order_versions[name]))
        self._order_written = order

    def _write(self, name: str, op: Op) -> None:
        self._order_name, self._order_written = name, None
        self._order_request = self.request()
        ops = (Check(self.paths.epoch, self.view.ledger_version), op)
        self.order(Commit(self.session.number, self._order_request, "order", ops, not_after=self.lease.until))

    _order_written: Order | None = None

    def forget_orders(self) -> None:
        """The session is gone, and what was in flight in it."""
        self._order_request, self._accepting = 0, None

    def order_answered(self, event: CommitDone | CommitRefused | CommitUnknown) -> None:
        """An order that we accepted is carried out now; one that we could not write is looked at again."""
        name, order, successors = self._order_name, self._order_written, self._accepting
        self._order_request, self._accepting = 0, None
        if not isinstance(event, CommitDone):
            # What became of it is seen in what is read next; meanwhile nothing is known of any order.
            if isinstance(event, CommitRefused) and event.error is ZkError.NO_AUTH:
                self.log("error", "order_not_writable", name=name, remedy="its znode must be writable for the agents")
                self._unwritable.add(name)
            self._orders_not_before = self.now + RETRY_S
            self.arm("orders", self._orders_not_before)
            self.view.orders, self.view.unreadable_orders = {}, {}
            return
        if order is None:
            self.view.orders.pop(name, None)
            self.view.unreadable_orders.pop(name, None)
            return
        self.view.orders[name] = order
        self.view.order_versions[name] = event.versions[1]
        if order.state == OrderState.ACCEPTED and successors is not None and self.state == machine.SERVING:
            self.begin_handover(successors, f"ordered by {order.by or 'somebody'}", name)

    def handover_failed(self, problem: str) -> None:
        if self.plan is not None and self.plan.order:
            self._failures[self.plan.order] = problem
        super().handover_failed(problem)
        self.plan = None
