"""How many distinct compositions a space has: exact, by counting the words that its rules can spell.

Called by ``DegradationSpace.size``. A composition is a word whose letters are types (an op with its numbers), or (type,
level) pairs. The rules read a word like an automaton with choices: a type may stand in several groups, a group may be
left out by chance, and one pass ends where the next begins, so one word can have several readings. All readings are
followed at once (the subset construction), which counts each word once. Members whose letters stand nowhere else are
not told apart, so a rule over dozens of ops has a few states.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from qpt.degradations.rule import Choice, Rule

State = tuple[int, Any]  # index of a pass, and what has been drawn in it
Step = tuple[Hashable, int, State]  # a letter (or a class of that many letters) and where it leads


def count_compositions(passes: Sequence[Rule], *, levels: bool, pristine: bool = False) -> int:
    """Distinct lists of types, or of (type, level) pairs, that ``passes`` can make, one after another.

    pristine: the empty list is possible whatever the rules say.
    """
    readers = [_Reader(passes, index, levels) for index in range(len(passes))]
    end = (len(passes), None)

    def with_passes_ended(states: set[State]) -> frozenset[State]:
        reached, fresh = set(states), list(states)
        while fresh:
            index, drawn = fresh.pop()
            if index < len(readers) and readers[index].may_end(drawn):
                following = (index + 1, readers[index + 1].start if index + 1 < len(readers) else None)
                if following not in reached:
                    reached.add(following)
                    fresh.append(following)
        return frozenset(reached)

    current = {with_passes_ended({(0, readers[0].start)}): 1}  # readings so far -> how many words have them
    total = int(pristine and all(end not in states for states in current))
    while current:
        longer: Counter[frozenset[State]] = Counter()
        for states, words in current.items():
            total += words if end in states else 0
            targets: dict[Hashable, set[State]] = defaultdict(set)
            letters: dict[Hashable, int] = {}
            for index, drawn in states:
                for letter, count, target in readers[index].steps(drawn) if index < len(readers) else ():
                    targets[letter].add(target)
                    letters[letter] = count
            for letter, reached in targets.items():
                longer[with_passes_ended(reached)] += words * letters[letter]
        current = longer
    return total


class _Reader:
    """One pass as an automaton. What has been drawn is a tuple whose form depends on the rule's repeat and shuffle."""

    def __init__(self, passes: Sequence[Rule], index: int, levels: bool) -> None:
        self.index, self.rule = index, passes[index]
        spelt = [[_letters(rule, place, levels) for place in range(len(rule.ops))] for rule in passes]
        uses = Counter(letter for rule in spelt for member in rule for letter in set(member))
        self.letters = spelt[index]
        self.own = [all(uses[letter] == 1 for letter in member) for member in self.letters]
        self.optional = [group.probability < 1 for group in self.rule.groups]
        # Members with letters of their own differ, in an any-order rule, by how many letters and whether optional only.
        self.kinds = [(len(set(m)), o) for m, o in zip(self.letters, self.optional, strict=True)]
        self.of_kind = Counter(kind for kind, own in zip(self.kinds, self.own, strict=True) if own)
        self.start: Any
        if self.rule.repeat:
            self.start = (0, (-1, -1)) if not self.rule.shuffle else (0, None)
        elif self.rule.shuffle:
            self.start = (frozenset(), frozenset())
        else:
            self.start = (-1, 0, 0)

    def may_end(self, drawn: Any) -> bool:
        """Whether some allowed number of members, less those left out by chance, is what has been drawn."""
        acting, acting_optional = self._acting(drawn)
        most = sum(self.optional) - acting_optional  # members that may still have been drawn and left out
        if self.rule.repeat and any(self.optional):
            most = self.rule.max_ops
        return any(0 <= number - acting <= most for number in self.rule.numbers)

    def _acting(self, drawn: Any) -> tuple[int, int]:
        """How many members have acted, and how many of them are optional (not counted where members repeat)."""
        if self.rule.repeat:
            return drawn[0], 0
        if not self.rule.shuffle:
            return drawn[1], drawn[2]
        shared, kinds = drawn
        acting = len(shared) + sum(n for _, n in kinds)
        return acting, sum(self.optional[m] for m in shared) + sum(n for (_, optional), n in kinds if optional)

    def steps(self, drawn: Any) -> Iterator[Step]:
        if self._acting(drawn)[0] >= self.rule.max_ops:
            return
        if self.rule.repeat:
            yield from self._repeated(drawn)
        elif self.rule.shuffle:
            yield from self._once_in_any_order(drawn)
        else:
            yield from self._once_in_order(drawn)

    def _repeated(self, drawn: Any) -> Iterator[Step]:
        number, last = drawn
        if self.rule.shuffle:  # only how many matters
            own = {letter for m, member in enumerate(self.letters) if self.own[m] for letter in member}
            if own:
                yield (self.index, "own"), len(own), (self.index, (number + 1, None))
            for letter in {letter for m, member in enumerate(self.letters) if not self.own[m] for letter in member}:
                yield letter, 1, (self.index, (number + 1, None))
        else:
            for place, member in enumerate(self.letters):
                for k, letter in enumerate(member):  # choice by choice, level by level: the order in which they act
                    position = (place, k)
                    if position >= last:
                        yield letter, 1, (self.index, (number + 1, position))

    def _once_in_any_order(self, drawn: Any) -> Iterator[Step]:
        shared, kinds = drawn
        used = Counter(dict(kinds))
        for kind, members in self.of_kind.items():
            if members > used[kind]:
                more = frozenset((used + Counter([kind])).items())
                yield (self.index, kind), (members - used[kind]) * kind[0], (self.index, (shared, more))
        for m, member in enumerate(self.letters):
            if not self.own[m] and m not in shared:
                for letter in set(member):
                    yield letter, 1, (self.index, (shared | {m}, kinds))

    def _once_in_order(self, drawn: Any) -> Iterator[Step]:
        last, acting, optional = drawn
        for place in range(last + 1, len(self.letters)):
            target = (self.index, (place, acting + 1, optional + self.optional[place]))
            if self.own[place]:
                yield (self.index, place), len(set(self.letters[place])), target
            else:
                for letter in set(self.letters[place]):
                    yield letter, 1, target


def _letters(rule: Rule, place: int, levels: bool) -> list[Hashable]:
    """The letters of one member, choice by choice and then level by level; one may stand there twice."""
    return [letter for choice in rule.groups[place].choices for letter in _spellings(choice, rule, levels)]


def _spellings(choice: Choice, rule: Rule, levels: bool) -> list[Hashable]:
    if not levels:
        return [(choice.type, 0)]
    return [(choice.type, v) for v in (rule.levels if choice.has_levels else (1,))]
