# ruff: noqa: E501 - patterns are easier to compare on one line each
"""Whether texts hold source code or shell commands, and in which language: fenced blocks, and code that just stands there.

Patterns of single lines (RE2) give points to a language; lines that lie together make a passage, and the points of a
passage its score. Prose about code gives few points, JSON, tables, logs and formulas none.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec
import re2

from guards.answers import final_answers
from guards.fences import blocks
from guards.guard import MAX_CHARS, Needs, NoOptions, Result
from guards.policy import options_of
from guards.strict import nearest
from guards.types import Failure, FailureCode, Hit, Range, Stage, Text, Unit

if TYPE_CHECKING:
    from guards.artifacts import Artifacts
    from guards.models import ModelStore

__all__ = ["KINDS", "LANGUAGES", "MAX_CHARS", "CodeGuard", "Options", "build"]


# So that the time, and a record of what was found, are bounded whatever a text holds.
MAX_MATCHES: Final = 2_000  # of one pattern in one text
MAX_BLOCKS: Final = 200  # fenced ones in one text; those after them are looked at as if they were not fenced
MAX_INLINE: Final = 100
MAX_PASSAGES: Final = 100  # of one text, the surest

PRESENT_FROM: Final = 0.5  # the score from which a passage is code for `require`
LABELLED_SCORE: Final = 0.95  # a fenced block says itself what it is
FENCED_POINTS: Final = 2.0  # an unlabelled block is more likely code than not
HALF_POINTS: Final = 2.0  # points that make a score of 0.5; twice as many make 0.75
INLINE_WEIGHT: Final = 0.5  # `git pull` within a sentence is a mention rather than code
LINE_POINTS: Final = 4.0  # at most, of one line
GAP_LINES: Final = 2  # lines without a sign within a passage

# Language → labels of fenced blocks.
_LABELS: Final[Mapping[str, tuple[str, ...]]] = {
    "python": ("python", "py", "python3", "ipython", "pycon"),
    "javascript": ("javascript", "js", "jsx", "typescript", "ts", "tsx", "node", "vue"),
    "java": ("java", "kotlin", "kt", "scala", "groovy"),
    "c": ("c", "cpp", "c++", "cxx", "h", "hpp", "objc", "objective-c", "arduino", "cuda"),
    "csharp": ("csharp", "cs", "c#", "fsharp", "vb"),
    "go": ("go", "golang"),
    "rust": ("rust", "rs"),
    "php": ("php",),
    "ruby": ("ruby", "rb"),
    "sql": ("sql", "mysql", "postgresql", "postgres", "plsql", "tsql", "sqlite"),
    "shell": ("bash", "sh", "shell", "zsh", "console", "terminal", "fish", "cmd", "bat", "batch", "dockerfile"),
    "powershell": ("powershell", "ps1", "pwsh"),
    "html": ("html", "xhtml", "svelte"),
    "css": ("css", "scss", "sass", "less"),
}
LANGUAGES: Final = tuple(_LABELS)
KINDS: Final = ("code", *(f"code_{language}" for language in LANGUAGES), "no_code")
"""All kinds of findings: a bounded set. `code` is code in a language that is not told."""

_LANGUAGE_OF: Final = {label: language for language, labels in _LABELS.items() for label in labels}
# Blocks that are labelled as data or text hold no code.
_NO_CODE: Final = frozenset(
    [
        "json",
        "json5",
        "jsonl",
        "yaml",
        "yml",
        "toml",
        "ini",
        "xml",
        "csv",
        "tsv",
        "text",
        "txt",
        "plain",
        "plaintext",
        "none",
        "markdown",
        "md",
        "log",
        "logs",
        "output",
        "diff",
        "patch",
        "latex",
        "tex",
        "math",
        "mermaid",
        "plantuml",
        "http",
        "env",
        "properties",
        "table",
        "quote",
        "email",
    ]
)

_COMMANDS: Final = (
    "apt|apt-get|aws|az|brew|cargo|cat|chmod|chown|cp|crontab|curl|dd|df|docker|docker-compose|du|echo|export|find|gcloud"
    "|git|go|grep|gunzip|helm|java|journalctl|kill|kubectl|ln|ls|make|mkdir|mount|mv|nano|nc|node|npm|npx|openssl|pip|pip3"
    "|pkill|pnpm|ps|python|python3|rm|rsync|scp|sed|ssh|sudo|systemctl|tar|terraform|touch|uname|unzip|vim|wget|yarn|yum"
)
_SUBCOMMANDS: Final = (
    r"git\s+(?:add|branch|checkout|clone|commit|diff|fetch|init|log|merge|pull|push|rebase|remote|reset|stash|status|switch)"
    r"|(?:npm|yarn|pnpm)\s+(?:install|run|init|start|test|add|ci|publish|i)|npx\s+[\w@/-]+|pip3?\s+(?:install|freeze|uninstall)"
    r"|docker\s+(?:run|build|exec|ps|pull|push|compose|images|logs|stop)|kubectl\s+(?:get|apply|delete|describe|exec|logs)"
    r"|(?:apt|apt-get|yum|dnf|brew)\s+(?:install|update|upgrade|remove)|cargo\s+(?:build|run|test|new|add)"
    r"|go\s+(?:build|run|test|mod|get)|systemctl\s+(?:start|stop|restart|enable|status)|terraform\s+(?:init|plan|apply)"
)

# (language, points of a line, pattern); an empty language is code of any kind. `^` and `$` are a line's.
_SIGNS: Final = (
    ("python", 3.0, r"^\s*(?:async +)?def +\w+ *\(.*\) *(?:-> *[^:]+)?:"),
    ("python", 3.0, r"^\s*class +\w+ *(?:\([\w., =]*\))? *:\s*$"),
    ("python", 3.0, r"^\s*(?:>>> )?from +[\w.]+ +import +[\w*(]"),
    ("python", 2.5, r"^\s*(?:>>> )?import +[a-z_][\w.]*(?: +as +\w+)?(?: *, *[\w.]+)*\s*$"),
    ("python", 2.0, r"^\s*for +\w+(?: *, *\w+)* +in +\S.* *:\s*$|^\s*with +\w[\w.]*\(.*:\s*$|^\s*except +\w.*:\s*$"),
    ("python", 2.0, r"^\s*(?:if|elif|while)\b.*(?:[=<>!]=|[<>(\[%]|\bnot\b|\bTrue\b|\bis +None\b).*:\s*$"),
    ("python", 1.5, r"^\s+(?:try|else|finally) *:\s*$"),
    ("python", 2.0, r"^\s*(?:>>> )?print\(.*\)\s*(?:#.*)?$"),
    ("python", 2.0, r"^>>> "),
    ("python", 2.0, r"^\s*@\w[\w.]*(?:\(.*\))?\s*$"),
    ("python", 2.0, r"\bself\.\w+|\blambda +\w+(?: *, *\w+)* *:|__\w+__|\bf\"[^\"]*\{"),
    ("python", 2.0, r"\[[^\]]+ for +\w+(?: *, *\w+)* +in +[^\]]+\]"),
    ("javascript", 3.0, r"^\s*(?:export +)?(?:const|let|var) +[\w{\[][^=]{0,80}=[^=]"),
    ("javascript", 3.0, r"\bfunction\b *\*? *\w* *\([^)]*\) *\{"),
    ("javascript", 3.0, r"\)\s*=> *[\w({\[`\"']|\b\w+ *=> *\{"),
    ("javascript", 3.0, r"\bconsole\.(?:log|error|warn)\(|\bdocument\.(?:get|query|create|add|body)\w*|\bmodule\.exports\b"),
    ("javascript", 3.0, r"^\s*(?:import\b.*\bfrom +['\"]|export +(?:default|function|class|interface|type)\b|.*\brequire\(['\"])"),
    ("javascript", 2.0, r"^\s*(?:interface|type) +\w+ *(?:=|\{)|\bawait +\w+[.(]|=== |!== "),
    ("java", 3.0, r"^\s*(?:public|private|protected) +(?:static +|final +|abstract +)*(?:class|interface|enum|record|void|int|long|boolean|double|String|List|Map)\b"),
    ("java", 3.0, r"\bSystem\.out\.print|^\s*import +(?:static +)?(?:java|javax|org|com|kotlin)\.[\w.*]+;?\s*$|^\s*package +[\w.]+;\s*$"),
    ("java", 2.0, r"^\s*@(?:Override|Autowired|Test|Entity|Service|RestController|Bean)\b|\bnew +(?:ArrayList|HashMap|Scanner|StringBuilder)\b"),
    ("java", 2.5, r"^\s*(?:override +)?fun +\w+ *\(|^\s*val +\w+(?: *: *\w+)? *= *\w"),
    ("c", 3.0, r"^\s*#\s*include *[<\"]|^\s*#\s*(?:define +\w+|ifn?def +\w+|pragma +\w+)"),
    ("c", 3.0, r"\bint +main *\(|\bstd::\w+|\b(?:cout *<<|cin *>>)|\bprintf\(\"|\bscanf\(\"|\bmalloc\(|\bsizeof\("),
    ("c", 2.5, r"^\s*(?:static +|const +|unsigned +|inline +)*(?:int|char|float|double|void|long|bool|size_t|auto|uint\d+_t) *\*? *\w+(?:\[\w*\])? *(?:=[^=].*;|;|\([^)]*\) *\{?\s*$)"),
    ("c", 3.0, r"^\s*template *<|^\s*using +namespace +\w+;|^\s*(?:typedef +)?struct +\w* *\{|\w->\w+"),
    ("csharp", 3.0, r"^\s*using +[A-Z][\w.]+;\s*$|^\s*namespace +[A-Z][\w.]+|\bConsole\.(?:Write|Read)|\bget; *set;|\basync +Task\b|\bstring\[\] +args\b"),
    ("go", 3.0, r"^\s*func +(?:\([^)]*\) *)?\w+\(.*\{\s*$|^package +\w+\s*$|\bfmt\.(?:Print|Sprint|Errorf)|^\s*import +\(\s*$"),
    ("go", 2.5, r"^\s*\w+(?: *, *\w+)* *:= *\S|\bif err != nil\b|\bmake\(chan\b|^\s*type +\w+ +(?:struct|interface) *\{"),
    ("rust", 3.0, r"^\s*(?:pub +)?fn +\w+ *(?:<[^>]*>)? *\(.*(?:\{|->)|\blet +mut +\w+|\bprintln!\(|^\s*use +(?:std|crate|\w+)::|^\s*impl\b.*\{|#\[derive"),
    ("rust", 2.0, r"^\s*let +\w+(?: *: *[\w<>&]+)? *=.*;\s*$|\.unwrap\(\)|&mut +\w+|\bmatch +\w+ *\{"),
    ("php", 3.0, r"<\?php|<\?=|^\s*\$\w+(?:\[[^\]]*\]|->\w+)* *= *.*;\s*$|\$this->|\becho +[\"'$].*;"),
    ("ruby", 2.5, r"^\s*def +\w+[?!]?(?:\([^):]*\))?\s*$|\bdo *\|\w+(?:, *\w+)*\||^\s*(?:puts|require|attr_accessor|attr_reader) +['\":]"),
    ("ruby", 1.0, r"^\s*end\s*$"),
    ("sql", 3.0, r"\bSELECT\b[^;\n]{1,200}\s\bFROM\s+[\w.\"`\[]+"),
    ("sql", 2.5, r"(?i)\bselect +(?:distinct +)?(?:\*|[\w.]+(?:\([^)]*\))?(?: +as +\w+)?(?: *, *[\w.*]+(?:\([^)]*\))?(?: +as +\w+)?)*)\s+from\s+[\w.]+(?:\s+\w{1,3})?\s*(?:;|$|where\b|join\b|order +by\b|group +by\b|limit\b)"),
    ("sql", 3.0, r"(?i)\binsert +into +[\w.\"`]+ *\(|\bcreate +(?:or +replace +)?(?:table|view|index|database|unique +index)\s+(?:if +not +exists +)?[\w.\"`]+ *(?:\(|as\b|on\b|;)|\balter +table +\w+ +(?:add|drop|modify|alter)\b|\bdrop +(?:table|database) +(?:if +exists +)?\w+ *;|\bdelete +from +\w+ +where\b|\btruncate +table +\w+"),
    ("sql", 2.5, r"(?i)\bupdate +[\w.\"`]+ +set +\w+ *=|^\s*(?:inner +|left +|right +|full +)?(?:outer +)?join +[\w.]+(?: +(?:as +)?\w+)? +on +\w"),
    ("sql", 2.0, r"^\s*SELECT\s+[\w*]|^\s*FROM +\w|^\s*WHERE +\w+|^\s*(?:GROUP|ORDER) +BY +\w|\bPRIMARY +KEY\b|\bVARCHAR\(\d"),
    ("shell", 3.0, r"^#! */\S*(?:sh|env)\b"),
    ("shell", 2.5, rf"^\s*(?:[$#>%] +|[\w.-]+@[\w.-]+:\S*[$#] *)?(?:sudo +)?(?:{_COMMANDS}) +(?:\S+ +){{0,6}}(?:-{{1,2}}[A-Za-z][\w-]*|[~./][\w./*-]*/\S*|https?://\S+)(?:\s|$)"),
    ("shell", 2.5, rf"^\s*(?:[$#>%] +)?(?:sudo +)?(?:{_SUBCOMMANDS})(?:\s+[\w@./:=~^*\"'$-]+){{0,6}}\s*(?:[|&;#].*)?$"),
    ("shell", 2.5, rf"^\s*[$%] +(?:sudo +)?(?:{_COMMANDS}|cd|\./\S+)\b"),
    ("shell", 2.0, rf"(?:^|[$#;&|] *)(?:{_COMMANDS})\b[^|\n]{{0,200}}\| *(?:grep|awk|sed|sort|uniq|head|tail|wc|xargs|tee|sh|bash|less|jq)\b"),
    ("shell", 2.5, r"^\s*(?:if +\[\[? .*\]\]? *;? *(?:then)?|for +\w+ +in +.*; *do|while +.*; *do|fi|done|esac)\s*$|\$\(\w+[^)]*\)|\becho +[\"'$]|^\s*export +[A-Z_]+=|^\s*(?:sudo +)?rm +-[rf]+ +\S|^\s*cd +[~./][\w./-]*\s*$"),
    ("shell", 2.0, r"^(?:FROM +[\w./-]+:[\w.-]+|RUN +(?:apt|pip|npm|apk|yum)\b.*|ENTRYPOINT +\[.*|CMD +\[.*)"),
    ("powershell", 3.0, r"\b(?:Get|Set|New|Remove|Invoke|Write|Start|Stop|Import|Export|Select|Where|ForEach|Test|Add)-[A-Z][A-Za-z]+ +(?:-\w|[\"'$])|\| *(?:Where|ForEach|Select|Sort|Format)-Object\b"),
    ("html", 3.0, r"(?i)<!doctype +html|<html\b|</(?:html|body|div|script|head|ul|table|form|span|button|style|section|nav|h[1-6]|p|a|li)>|<(?:div|span|input|img|script|link|meta|a|button|form) +[\w-]+ *= *[\"']"),
    ("css", 3.0, r"^\s*(?:[.#]?[A-Za-z][\w-]*|\*|@media\b[^{\n]*)(?:[ ,:>+~.#][\w\s:.#>+~,-]*)? *\{\s*(?:[a-z-]+ *: *[^;{}\n]+;.*)?$"),
    ("css", 1.5, r"^\s+(?:color|background(?:-color)?|margin|padding|font(?:-size|-family|-weight)?|display|width|height|border(?:-radius)?|position) *: *[^;{}]+;\s*$"),
    ("", 1.0, r"[\w)\]] *\{\s*$"),
    ("", 1.0, r"^\s*\}(?: *else *\{| *catch\b.*\{|[;)]+)\s*$"),
    ("", 1.0, r"[)\]\"'] *;\s*(?://.*)?$|^\s*[\w.\[\]]+ *[-+*/|&]?= *.*;\s*(?://.*)?$"),
    ("", 1.0, r"^\s*(?:return|throw|raise|yield) +(?:[\w\"'(\[{-][^!?]*)?[;)\w\]}\"']\s*$"),
    ("", 1.0, r"^\s*[A-Za-z_][\w.]*(?:\[[\w\"']+\])? *(?:[-+*/|&]=|=) *(?:\w+(?:\.\w+)*\(|\[|\{|[\"'][^\"']*[\"']\s*;?\s*$|new +\w|None\b|True\b|False\b|null\b|true\b|false\b)"),
    ("", 1.0, r"^\s*\w+(?:\.\w+)+\([^)]*\)?.*[;){,]\s*$"),
    ("", 1.0, r"^\s*(?:if|while|for|switch|else if) *\(.*\) *\{?\s*$"),
    ("", 0.5, r"^\s*(?://|/\*|\*/|# )\s*\w|^\s*<!--"),
)  # fmt: skip

_INLINE: Final = re2.compile(rb"(?m)(?:^|[^`])`([^`\n]{3,200})`(?:[^`]|$)")
# A line of JSON, a row of a table, a formula: no code, whatever it looks like.
_DATA: Final = re2.compile(
    rb"(?m)^\s*(?:\{?\s*\"[^\"]*\" *:|\|.*\|\s*$|[\[{].*\"[^\"]*\" *:.*[\]}],?\s*$|[{}\[\]],?\s*$"
    rb"|\\(?:begin|end|frac|int|sum)\b|\$\$?[^$]*\$\$?\s*$|.*\\(?:frac|sqrt|int|sum|cdot|left|text)\b)"
)
_LINE_END: Final = re2.compile(rb"\n")


class _Sign(NamedTuple):
    language: str
    points: float
    pattern: Any


class _Passage(NamedTuple):
    """Code points ``start`` to ``end`` (exclusive) of a text that look like code; an empty language is not told."""

    language: str
    score: float
    start: int
    end: int


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, cache_hash=True):
    """``guards.code.options``. ``languages``: which count; none: all, and such as are not told. ``require``: an answer
    must hold code. Texts of ``skip_roles`` are not looked at."""

    languages: tuple[str, ...] = ()
    require: bool = False
    skip_roles: tuple[str, ...] = ("system", "developer")

    def __post_init__(self) -> None:
        for language in self.languages:
            if language not in LANGUAGES:
                raise ValueError(f"languages: {language!r} is not known{nearest(language, LANGUAGES)}")


class CodeGuard:
    """Kinds `code_<language>` and `code`, a hit for each passage; with ``require`` also `no_code` (score 1 - that of the
    surest passage) for each answer, however low the score."""

    name = "code"
    version = "1"
    stages: frozenset[Stage] = frozenset(("request", "response"))
    unit: Literal["text", "exchange"] = "exchange"  # what an answer must hold may be in any of its parts
    options_type: type[msgspec.Struct] = Options

    def __init__(self) -> None:
        self._signs = [
            _Sign(language, points, re2.compile(f"(?m){pattern}".encode())) for language, points, pattern in _SIGNS
        ]

    def applies(self, unit: Unit, options: Options) -> bool:
        return any(_texts(unit, options)) or (options.require and bool(_answers(unit)))

    def needs(self, unit: Unit, options: Options) -> Needs:
        return Needs()

    def check(self, units: Sequence[Unit], options: Options, artifacts: Artifacts) -> Sequence[Result]:
        """Per exchange its passages in order, or ``INPUT_TOO_LARGE``."""
        return [self._check(unit, options) for unit in units]

    def _check(self, unit: Unit, options: Options) -> Result:
        texts = list(_texts(unit, options))
        if any(len(text.text) > MAX_CHARS for _, text in texts):
            return Failure(FailureCode.INPUT_TOO_LARGE)
        surest: dict[int, float] = {}
        hits: list[Hit] = []
        for index, text in texts:
            for passage in self._passages(text.text):
                if not options.languages or passage.language in options.languages:
                    kind = f"code_{passage.language}" if passage.language else "code"
                    hits.append(Hit(kind, passage.score, (Range(passage.start, passage.end, index),)))
                    surest[index] = max(surest.get(index, 0.0), passage.score)
        if options.require:
            for answer in _answers(unit):
                best = max((surest.get(index, 0.0) for index, _ in answer), default=0.0)
                hits.append(Hit("no_code", 0.0 if best >= PRESENT_FROM else round(1 - best, 3)))
        return hits

    def _passages(self, text: str) -> list[_Passage]:
        # One byte per code point, so that RE2's offsets are the text's; keywords and signs are ASCII in all languages.
        data = text.encode("ascii", "replace")
        found: list[_Passage] = []
        outside = bytearray(data)
        for block in islice(blocks(text), MAX_BLOCKS):
            outside[block.start : block.end] = _blank(data[block.start : block.end])
            found.extend(self._fenced(data, block.label, block.start, block.end))
        for match in islice(_INLINE.finditer(bytes(outside)), MAX_INLINE):
            start, end = match.span(1)
            language, points = self._best(data[start:end])
            if points:
                found.append(_Passage(language, _score(points * INLINE_WEIGHT), start, end))
            outside[start:end] = _blank(data[start:end])
        found.extend(self._unfenced(bytes(outside)))
        surest = sorted(found, key=lambda passage: -passage.score)[:MAX_PASSAGES]
        return sorted(surest, key=lambda passage: passage.start)

    def _fenced(self, data: bytes, label: str, start: int, end: int) -> Iterator[_Passage]:
        inside = data[start:end]
        if label in _NO_CODE or not inside.strip():
            return
        language = _LANGUAGE_OF.get(label, "")
        if language:
            yield _Passage(language, LABELLED_SCORE, start, end)
            return
        language, points = self._best(inside)
        if points:
            yield _Passage(language, _score(points + FENCED_POINTS), start, end)

    def _best(self, data: bytes) -> tuple[str, float]:
        """The language of some lines taken together, and their points."""
        return _judged(list(self._points(data).values()))

    def _points(self, data: bytes) -> dict[int, dict[str, float]]:
        """Index of a line → language → points."""
        starts = [0, *(match.end() for match in _LINE_END.finditer(data))]
        no_code = {_line(match, starts) for match in _DATA.finditer(data)}
        lines: dict[int, dict[str, float]] = {}
        for sign in self._signs:
            for match in islice(sign.pattern.finditer(data), MAX_MATCHES):
                number = _line(match, starts)
                if number not in no_code:
                    line = lines.setdefault(number, {})
                    line[sign.language] = max(line.get(sign.language, 0.0), sign.points)
        return lines

    def _unfenced(self, data: bytes) -> Iterator[_Passage]:
        lines = self._points(data)
        starts = [0, *(match.end() for match in _LINE_END.finditer(data)), len(data) + 1]
        group: list[int] = []
        for number in [*sorted(lines), None]:
            if group and (number is None or number - group[-1] > GAP_LINES):
                language, points = _judged([lines[line] for line in group])
                yield _Passage(
                    language, _score(points), starts[group[0]], max(starts[group[-1] + 1] - 1, starts[group[0]])
                )
                group = []
            if number is not None:
                group.append(number)


def _line(match: Any, starts: Sequence[int]) -> int:
    """The line on which a match begins to say something; it may begin with the blank lines before."""
    found = match.group()
    return bisect_right(starts, match.start() + len(found) - len(found.lstrip())) - 1


def _judged(lines: Sequence[Mapping[str, float]]) -> tuple[str, float]:
    """The language with most points in some lines, and the points of all: a line's own language and any language's."""
    totals: dict[str, float] = {}
    points = 0.0
    for line in lines:
        named = max((value for language, value in line.items() if language), default=0.0)
        points += min(named + line.get("", 0.0), LINE_POINTS)
        for language, value in line.items():
            if language:
                totals[language] = totals.get(language, 0.0) + value
    language = max(totals, key=lambda key: (totals[key], key), default="")
    return language, points


def _score(points: float) -> float:
    return round(1 - math.pow(0.5, points / HALF_POINTS), 3)


def _blank(data: bytes) -> bytes:
    """Spaces of the same length, line breaks kept."""
    return re.sub(rb"[^\n]", b" ", data)


def _texts(unit: Unit, options: Options) -> Iterator[tuple[int, Text]]:
    return ((index, text) for index, text in enumerate(unit.texts) if text.role not in options.skip_roles)


def _answers(unit: Unit) -> Sequence[Sequence[tuple[int, Text]]]:
    return final_answers(unit) if unit.stage == "response" else ()


def build(options: Mapping[str, Any], models: ModelStore) -> CodeGuard:
    """The guard; it has no model. Raises `ConfigError` for an option of the profile: it has none."""
    options_of(NoOptions, options, "guards.code")
    return CodeGuard()
