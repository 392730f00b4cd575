"""Workers, officers and answers in any order: the log always verifies, and nobody is lost.

Hostile cases are part of it: claims that ran out and come back, answers to calls of workers
that were taken over, new ids at any moment. What the rows say is compared with a replay of
the log after each step, by `verify` itself and by a model of what people asked.
"""

from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from mm_tasks.buffer.records import tag
from mm_tasks.erasure.audit.protocol import OPEN, IllegalTransition
from mm_tasks.erasure.audit.verification import verify
from mm_tasks.erasure.models import VendorAck
from tests.erasure.stores import DONE, NOW, Store

USERS = st.sampled_from(["ann", "bob"])
VISITORS = st.lists(st.sampled_from(["v1", "v2", "v3"]), max_size=2).map(tuple)
ANSWERS = st.sampled_from(
    [DONE, DONE, DONE, ("retrying", 60), ("waiting_key", 3600), ("attention", None)]
)


class Erasures(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = TemporaryDirectory()
        self.store = Store(f"sqlite:///{self.folder.name}/a.sqlite", Path(self.folder.name))
        self.now = NOW
        self.claims, self.attempts, self.asked = [], [], {}

    def teardown(self):
        self.folder.cleanup()

    @rule(user=USERS, visitors=VISITORS, delay_s=st.sampled_from([0, 0, 60, 3600]))
    def ask(self, user, visitors, delay_s):
        opened = self.store.ask(user, self.now, delay_s, anonymous_ids=visitors)
        ids = {("user", user), *(("anonymous", one) for one in visitors)}
        self.asked.setdefault(opened.id, set()).update(ids)
        self.keep(self.claims, opened.claim)

    @rule(seconds=st.sampled_from([1, 30, 120, 90_000]))
    def wait(self, seconds):
        self.now += timedelta(seconds=seconds)

    @rule()
    def claim_all(self):
        for erasure in self.store.steps.due(60, self.now):
            claim = self.store.steps.claim(erasure, self.now, 60)
            assert claim is not None, "what is due can be claimed"
            self.claims.append(claim)

    @rule(choice=st.integers(0, 99))
    def step(self, choice):
        """By any claim ever given, also one that was lost."""
        if not self.claims:
            return
        claim, steps = self.claims[choice % len(self.claims)], self.store.steps
        shown = self.store.queries.show(claim.id)
        match shown["state"]:
            case "scheduled":
                self.keep(self.claims, steps.start(claim, self.now))
            case "received":
                self.keep(self.claims, steps.mark_fenced(claim, self.now))
            case "fenced":
                self.keep(self.claims, steps.mark_purged(claim, {"dead": 1}, self.now))
            case "purged":
                self.keep(self.claims, steps.mark_quiesced(claim, (0, 60), self.now))
            case "submitted" if shown["acknowledged"] == 2:
                steps.complete(claim, self.now)
            case state if state in OPEN:
                self.keep(self.attempts, steps.intent(claim, self.now))
            case _:
                assert steps.intent(claim, self.now) is None

    @staticmethod
    def keep(results, result):
        if result is not None:
            results.append(result)

    @rule(choice=st.integers(0, 99))
    def release(self, choice):
        if self.claims:
            self.store.steps.release(self.claims[choice % len(self.claims)])

    @rule(choice=st.integers(0, 99), answer=ANSWERS)
    def answer(self, choice, answer):
        """To any call ever made, also one that was answered."""
        if not self.attempts:
            return
        if answer is not DONE:
            answer = VendorAck(503, "unavailable", *answer)
        self.store.steps.result(self.attempts[choice % len(self.attempts)], answer, self.now)

    @rule(choice=st.integers(0, 99), what=st.sampled_from(["cancel", "lift", "retry"]))
    def officer(self, choice, what):
        if not self.asked:
            return
        erasure = sorted(self.asked)[choice % len(self.asked)]
        try:
            getattr(self.store.commands, what)(erasure, "dpo", self.now)
        except IllegalTransition:
            return

    @invariant()
    def the_log_verifies_and_agrees_with_the_rows(self):
        report = verify(self.store.log)
        assert sum(report.erasures.values()) == len(self.asked)

    @invariant()
    def a_fence_stands_for_each_id_whose_erasure_is_in_force(self):
        wanted = set()
        for shown in self.store.queries.listed():
            if shown["state"] in {*OPEN, "completed"} - {"scheduled"}:
                wanted |= {tag("p", *one) for one in self.asked[shown["id"]]}
        assert set(self.store.queries.fences()) == wanted

    @invariant()
    def no_open_erasure_is_forgotten(self):
        """Each is due at some time, unless it waits for a person."""
        far = self.now + timedelta(days=365)
        open_ = {one["id"]: one for one in self.store.queries.listed(OPEN)}
        waiting = {name for name, one in open_.items() if one["state"] == "attention"}
        assert set(self.store.steps.due(60, far)) | waiting == open_.keys()


def test_in_any_order_the_log_verifies_and_nobody_is_lost():
    run_state_machine_as_test(Erasures, settings=settings(max_examples=12, stateful_step_count=25))
