"""Counting the distinct compositions of a space, exactly.

Called by ``DegradationSpace.size``. A composition is a word over the alphabet of types, or of (type, level) pairs, and
each pass of the space is a nondeterministic finite automaton that accepts words. The subset construction makes the
automaton deterministic, so that a word counts once however many ways lead to it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from qpt.degradations.rule import OpSpec, Rule

State = tuple[int, Any]  # index of a pass, and what has been drawn in it
Transition = tuple[Hashable, int, State]  # a letter or a class of letters, the number of its letters, the next state


def count_compositions(passes: Sequence[Rule], *, levels: bool, pristine: bool = False) -> int:
    """Return the number of distinct lists of types, or of (type, level) pairs, that ``passes`` can draw in turn.

    pristine: True if the empty list is possible whatever the rules say.
    """
    automata = [_RuleAutomaton(passes, index, levels) for index in range(len(passes))]
    end = (len(passes), None)

    def closure(states: set[State]) -> frozenset[State]:
        """Add the states that are reached when passes end."""
        reached, fresh = set(states), list(states)
        while fresh:
            index, drawn = fresh.pop()
            if index < len(automata) and automata[index].accepts(drawn):
                following = (index + 1, automata[index + 1].start if index + 1 < len(automata) else None)
                if following not in reached:
                    reached.add(following)
                    fresh.append(following)
        return frozenset(reached)

    current = {closure({(0, automata[0].start)}): 1}  # set of states -> number of words that lead to it
    total = int(pristine and all(end not in states for states in current))
    while current:
        longer: Counter[frozenset[State]] = Counter()
        for states, words in current.items():
            total += words if end in states else 0
            targets: dict[Hashable, set[State]] = defaultdict(set)
            letters: dict[Hashable, int] = {}
            for index, drawn in states:
                for letter, count, target in automata[index].transitions(drawn) if index < len(automata) else ():
                    targets[letter].add(target)
                    letters[letter] = count
            for letter, reached in targets.items():
                longer[closure(reached)] += words * letters[letter]
        current = longer
    return total


# An automaton is not deterministic, since a type may stand in several groups, a group may be left out by chance, and
# one pass may end where the next begins. Members whose letters stand nowhere else are merged into classes that only
# count their letters, so that a rule over dozens of ops has a few states.
class _RuleAutomaton:
    """The automaton of one pass. Its state ``drawn`` depends on the rule:

    - repeat: (number of members, position of the last one, None in any order);
    - no repeat, any order: (set of members that share letters, number of the other members by kind);
    - no repeat, fixed order: (place of the last member, number of members, number of optional ones).
    """

    def __init__(self, passes: Sequence[Rule], index: int, levels: bool) -> None:
        self.index, self.rule = index, passes[index]
        letters = [[_letters(rule, place, levels) for place in range(len(rule.ops))] for rule in passes]
        uses = Counter(letter for rule in letters for member in rule for letter in set(member))
        self.letters = letters[index]
        self.own = [all(uses[letter] == 1 for letter in member) for member in self.letters]
        self.optional = [group.probability < 1 for group in self.rule.groups]
        # Two members with letters of their own are alike in an any-order rule if they have as many letters and both or
        # neither are optional.
        self.kinds = [(len(set(m)), o) for m, o in zip(self.letters, self.optional, strict=True)]
        self.of_kind = Counter(kind for kind, own in zip(self.kinds, self.own, strict=True) if own)
        self.start: Any
        if self.rule.repeat:
            self.start = (0, (-1, -1)) if not self.rule.shuffle else (0, None)
        elif self.rule.shuffle:
            self.start = (frozenset(), frozenset())
        else:
            self.start = (-1, 0, 0)

    def accepts(self, drawn: Any) -> bool:
        """Return True if an allowed number of members, less those left out by chance, gives what has been drawn."""
        acting, acting_optional = self._acting(drawn)
        left_out = sum(self.optional) - acting_optional  # members that may have been drawn without acting
        if self.rule.repeat and any(self.optional):
            left_out = self.rule.max_ops
        return any(0 <= count - acting <= left_out for count in self.rule.counts)

    def _acting(self, drawn: Any) -> tuple[int, int]:
        """Return how many members have acted, and how many of them are optional (0 where members repeat)."""
        if self.rule.repeat:
            return drawn[0], 0
        if not self.rule.shuffle:
            return drawn[1], drawn[2]
        shared, kinds = drawn
        acting = len(shared) + sum(n for _, n in kinds)
        return acting, sum(self.optional[m] for m in shared) + sum(n for (_, optional), n in kinds if optional)

    def transitions(self, drawn: Any) -> Iterator[Transition]:
        if self._acting(drawn)[0] >= self.rule.max_ops:
            return
        if self.rule.repeat:
            yield from self._repeated(drawn)
        elif self.rule.shuffle:
            yield from self._once_in_any_order(drawn)
        else:
            yield from self._once_in_order(drawn)

    def _repeated(self, drawn: Any) -> Iterator[Transition]:
        number, last = drawn
        if self.rule.shuffle:  # only the number of members matters
            own = {letter for m, member in enumerate(self.letters) if self.own[m] for letter in member}
            if own:
                yield (self.index, "own"), len(own), (self.index, (number + 1, None))
            for letter in {letter for m, member in enumerate(self.letters) if not self.own[m] for letter in member}:
                yield letter, 1, (self.index, (number + 1, None))
        else:
            for place, member in enumerate(self.letters):
                for k, letter in enumerate(member):  # spec by spec, level by level: the order in which they act
                    position = (place, k)
                    if position >= last:
                        yield letter, 1, (self.index, (number + 1, position))

    def _once_in_any_order(self, drawn: Any) -> Iterator[Transition]:
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

    def _once_in_order(self, drawn: Any) -> Iterator[Transition]:
        last, acting, optional = drawn
        for place in range(last + 1, len(self.letters)):
            target = (self.index, (place, acting + 1, optional + self.optional[place]))
            if self.own[place]:
                yield (self.index, place), len(set(self.letters[place])), target
            else:
                for letter in set(self.letters[place]):
                    yield letter, 1, target


def _letters(rule: Rule, place: int, levels: bool) -> list[Hashable]:
    """Return the letters of one member, spec by spec and then level by level; a letter may occur twice."""
    return [letter for spec in rule.groups[place].specs for letter in _letters_of_spec(spec, rule, levels)]


def _letters_of_spec(spec: OpSpec, rule: Rule, levels: bool) -> list[Hashable]:
    if not levels:
        return [(spec.type, 0)]
    return [(spec.type, v) for v in (rule.levels if spec.has_levels else (1,))]
