"""A VM: its timeline, and its sessions in all its timelines."""

from __future__ import annotations

from typing import NamedTuple

from auditor.state import Life, State
from auditor.timeline import Put, Timeline


class Session(NamedTuple):
    customer_id: str
    life: Life


class Vm:
    def __init__(self, vm_id: str) -> None:
        self.vm_id = vm_id
        self.timeline = Timeline(0, State())
        # By number.
        self.sessions: dict[int, Session] = {}
        # Its running session has ended, as far as is known.
        self.vanished = False
        # In whole seconds of ticks.
        self.heard_seconds = 0
        self.silent = False
        # Numbers of sessions that an instance listed while they ran.
        self.listed: set[int] = set()

    def copy(self) -> Vm:
        """One that can be changed without changing this one."""
        other = Vm(self.vm_id)
        other.__dict__.update(self.__dict__)
        other.timeline = self.timeline.copy()
        other.sessions = dict(self.sessions)
        other.listed = set(self.listed)
        return other

    @property
    def newest(self) -> Session | None:
        """The newest session in time, as it is known now."""
        session = self.sessions.get(self.newest_ordinal)
        if session is None or not self.vanished:
            return session
        ended = session.life._replace(end_ns=session.life.last_ns, end_kind="vanished")
        return Session(session.customer_id, ended)

    @property
    def newest_ordinal(self) -> int:
        """0 where it has no session."""
        return self.timeline.state.ordinal

    @property
    def free_ordinal(self) -> int:
        return len(self.sessions) + 1

    @property
    def running(self) -> bool:
        return self.timeline.state.running and not self.vanished

    def all_sessions(self) -> dict[int, Session]:
        newest = self.newest
        return self.sessions if newest is None else {**self.sessions, self.newest_ordinal: newest}

    def live(self, put: Put, customer_id: str) -> None:
        """Take over what a walk says of the sessions. Those that are new are this customer's."""
        # From the instant before: what was its session's there may be another's now.
        for state, billed in self.timeline.walked[max(0, put.from_index - 1) :]:
            known = {} if state.life is None else {state.ordinal: state.life}
            for ordinal, life in {**billed.lives, **known}.items():
                session = self.sessions.get(ordinal)
                self.sessions[ordinal] = Session(customer_id if session is None else session.customer_id, life)

    def begin_anew(self) -> None:
        """Another customer takes the VM over: the timeline ends with its newest session, and another begins.

        Raises:
            ValueError: the newest session has no end.
        """
        newest = self.newest
        if newest is None or newest.life.end_ns is None:
            raise ValueError(f"{self.vm_id}: no session has ended")
        self.sessions = self.all_sessions()
        self.timeline = Timeline(newest.life.end_ns, State(self.timeline.state.meters))
        self.vanished = False
