"""A strict reader of the text format 0.0.4: whatever a scraper might stumble over is an error here."""

import math
import re

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_NUMBER = re.compile(r"[+-]?Inf|NaN|[+-]?\d+(\.\d+)?(e[+-]?\d+)?")
_ESCAPES = {"\\": "\\", '"': '"', "n": "\n"}

Sample = tuple[str, tuple[tuple[str, str], ...]]


class Exposition:
    """`types` and `helps` by family, `samples` by name and label pairs, in order of appearance."""

    def __init__(self, text: str) -> None:
        self.types: dict[str, str] = {}
        self.helps: dict[str, str] = {}
        self.samples: dict[Sample, float] = {}
        assert not text or text.endswith("\n"), "the last line must end"
        family = ""
        for line in text.split("\n")[:-1]:
            if line.startswith("# HELP "):
                family, _, help_text = line[7:].partition(" ")
                assert family not in self.helps, f"{family} appears twice"
                self.helps[family] = re.sub(r"\\(.)", lambda m: {"\\": "\\", "n": "\n"}[m[1]], help_text)
            elif line.startswith("# TYPE "):
                name, _, kind = line[7:].partition(" ")
                assert name == family
                assert kind in {"counter", "gauge", "histogram"}
                self.types[name] = kind
            else:
                self._sample(line, family)
        self._check_histograms()

    def value(self, name: str, **labels: str) -> float:
        return self.samples[name, tuple(labels.items())]

    def _sample(self, line: str, family: str) -> None:
        name_match = _NAME.match(line)
        assert name_match, line
        name, at = name_match[0], name_match.end()
        suffixes = ("_bucket", "_sum", "_count") if self.types[family] == "histogram" else ("",)
        assert name in {family + suffix for suffix in suffixes}, line
        pairs: list[tuple[str, str]] = []
        if line[at] == "{":
            at += 1
            while True:
                label = _NAME.match(line, at)
                assert label, line
                assert line[label.end() : label.end() + 2] == '="', line
                value, at = self._quoted(line, label.end() + 2)
                pairs.append((label[0], value))
                at += 1
                if line[at - 1] == "}":
                    break
                assert line[at - 1] == ",", line
        assert len({label for label, _ in pairs}) == len(pairs), line
        assert line[at] == " ", line
        number = line[at + 1 :]
        assert _NUMBER.fullmatch(number), line
        key = (name, tuple(pairs))
        assert key not in self.samples, f"{line} appears twice"
        self.samples[key] = float(number)

    @staticmethod
    def _quoted(line: str, at: int) -> tuple[str, int]:
        out = []
        while line[at] != '"':
            if line[at] == "\\":
                at += 1
                out.append(_ESCAPES[line[at]])
            else:
                out.append(line[at])
            at += 1
        return "".join(out), at + 1

    def _check_histograms(self) -> None:
        groups: dict[Sample, list[tuple[float, float]]] = {}
        for (name, pairs), value in self.samples.items():
            if name.endswith("_bucket") and self.types.get(name[:-7]) == "histogram":
                assert pairs[-1][0] == "le"
                groups.setdefault((name[:-7], pairs[:-1]), []).append((float(pairs[-1][1]), value))
        for (name, pairs), buckets in groups.items():
            assert buckets == sorted(buckets), f"{name}: buckets must rise"
            assert buckets[-1] == (math.inf, self.samples[name + "_count", pairs])
            assert (name + "_sum", pairs) in self.samples
