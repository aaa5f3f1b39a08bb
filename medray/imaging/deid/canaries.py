"""What identified a patient in a data set, kept while it is de-identified, and looked for in what is written.

A hit is a fact that came through: in an attribute that the profile keeps, or in one that it cleaned badly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

WORD = re.compile(r"[^\W_]+")
DIGITS = re.compile(r"\d{8}")
TEXT_VRS = frozenset({"AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
CODED_VRS = frozenset({"AS", "CS", "DS", "IS", "TM"})
DATE_VRS = frozenset({"DA", "DT"})
DESCRIPTION = re.compile(
    "Description|Comment|Protocol|Label|History|Text|Reason|Agent|Title|Notes|Impressions|Procedure"
)
"""Keywords of attributes whose words are the field's ('brain', 'routine') as much as the patient's."""
PLACEHOLDERS = frozenset(
    {"anonymized", "anonymous", "anon", "00010101", "00010101000000", "http", "invalid", "unknown"}
)
MIN_WORD, MIN_NUMBER, MIN_VALUE, MIN_DESCRIPTION, MIN_IN_PIXELS = 4, 6, 6, 12, 8


@dataclass(frozen=True, slots=True)
class Canaries:
    """Collected while cleaning; see `leaks`."""

    names: set[str] = field(default_factory=set)
    """Words of names, and words with six digits or more: they may occur in no attribute."""
    words: set[str] = field(default_factory=set)
    """Words of ids, institutions, addresses: they may occur in no free text."""
    values: set[str] = field(default_factory=set)
    """Whole values, in lower case: they may be no part of any text."""
    uids: set[str] = field(default_factory=set)
    """UIDs that were replaced."""

    def add(self, vr: str, keyword: str, value: Any) -> None:
        """Remember what a removed or replaced attribute said; private attributes have no keyword."""
        for text in texts(value):
            if vr == "UI":
                self.uids.add(text)
            elif vr in DATE_VRS:
                self.names.update(DIGITS.findall(text)[:1])
                self.values.update({text} if len(text) >= MIN_NUMBER else ())
            elif vr in TEXT_VRS:
                self._add_text(text.lower(), vr, DESCRIPTION.search(keyword or "Description") is not None)
        for known in (self.names, self.words, self.values):
            known.difference_update(PLACEHOLDERS)

    def _add_text(self, text: str, vr: str, described: bool) -> None:
        words = {word for word in WORD.findall(text) if len(word) >= MIN_WORD}
        self.names.update(words if vr == "PN" else _numbers(words))
        if not described:
            self.words.update(words)
        least = MIN_DESCRIPTION if described else MIN_WORD if "^" in text else MIN_VALUE
        if len(text.strip()) >= least:
            self.values.add(text.strip())

    def leaks(self, vr: str, value: Any) -> bool:
        """Whether an attribute that is to be written says what was removed elsewhere."""
        return any(self._leaks(vr, text) for text in texts(value))

    def _leaks(self, vr: str, text: str) -> bool:
        if vr == "UI":
            return text in self.uids
        text = text.lower()
        if vr in CODED_VRS or vr in DATE_VRS:
            return not self.names.isdisjoint(WORD.findall(text))
        words = WORD.findall(text)
        return (
            not self.names.isdisjoint(words)
            or not self.words.isdisjoint(words)
            or any(known in text for known in self.values)
        )

    def in_bytes(self, content: bytes) -> bool:
        """Whether a whole value of 8 characters or more stands in bytes that are not text, as a JPEG comment does."""
        lowered = content.lower()
        return any(len(value) >= MIN_IN_PIXELS and value.encode() in lowered for value in self.values)


def _numbers(words: set[str]) -> Iterator[str]:
    return (word for word in words if sum(map(str.isdigit, word)) >= MIN_NUMBER)


def texts(value: Any) -> Iterator[str]:
    """The strings in the value of an attribute, one or several, text or numbers; bytes count as Latin-1."""
    if value is None:
        return
    if isinstance(value, bytes):
        yield value.decode("latin-1")
    elif isinstance(value, str) or not hasattr(value, "__iter__") or hasattr(value, "components"):
        # A person's name is iterable, but one text.
        yield str(value)
    else:
        for item in value:
            yield from texts(item)
