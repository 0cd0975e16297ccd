"""The verdict on the measurements of a run and of a document, from the conditions of their engines."""

from __future__ import annotations

from collections.abc import Sequence

from edgevit.latency.document.content import Document, Session
from edgevit.latency.document.validity import Answer
from edgevit.words import counted


def certified(session: Session) -> Answer:
    """Return "no" if a condition of an engine is not met, else "unknown" if one is unknown, else "yes"."""
    answers = {check.answer for entry in session.entries for check in entry.checks}
    return "no" if "no" in answers else "unknown" if "unknown" in answers else "yes"


def headline(session: Session) -> str:
    """Return the verdict in one line: "certified", or "not certified" with the reasons. It names what is unknown."""
    reasons = [_reason(checks, session) for checks in _by_condition(session, "no").values()]
    unknown = list(_by_condition(session, "unknown"))
    listed = f"unknown: {', '.join(unknown)}"
    if reasons:
        return "; ".join([f"not certified: {'; '.join(reasons)}", *([listed] if unknown else [])])
    return f"certified as far as known; {listed}" if unknown else "certified"


def document_verdict(document: Document) -> tuple[Answer, str]:
    """Return the answer and the headline of all runs of a document."""
    answers = [certified(session) for session in document.sessions]
    if len(answers) == 1:
        return answers[0], headline(document.sessions[0])
    worst: Answer = "no" if "no" in answers else "unknown" if "unknown" in answers else "yes"
    words = {"no": "not certified", "unknown": "certified as far as known", "yes": "certified"}[worst]
    return worst, f"{words}: {answers.count(worst)} of {len(answers)} runs; see each run for the reasons"


def _by_condition(session: Session, answer: Answer) -> dict[str, list[tuple[str, str]]]:
    """Return the engines with an answer and their evidence, by condition."""
    found: dict[str, list[tuple[str, str]]] = {}
    for entry in session.entries:
        for check in entry.checks:
            if check.answer == answer:
                found.setdefault(check.name, []).append((entry.title, check.evidence))
    return found


def _reason(failed: Sequence[tuple[str, str]], session: Session) -> str:
    """Return the evidence of the first engine that fails, and how many others fail too."""
    title, evidence = failed[0]
    if len(failed) == len(session.entries) and len({each for _, each in failed}) == 1:
        return evidence
    others = len(failed) - 1
    too = f" and {counted(others, 'other')}" if others else ""
    return f"{evidence} ({title}{too})"
