"""The style sheet of the HTML report: light and dark, on a phone and on paper. Colors of series suit color-blind eyes.

They follow Okabe and Ito (2008), darkened or lightened to a contrast of 3 to 1 with the page.
"""

STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1b1b1b;--soft:#595959;--rule:#d4d4d4;--tint:#f4f4f2;
--yes:#00664a;--no:#a83c00;--unknown:#5c5c5c;
--c0:#0072b2;--c1:#c04e00;--c2:#00805e;--c3:#a84a86;--c4:#8a6500;--c5:#2a86b8;--c6:#555;--c7:#6b5b00}
@media (prefers-color-scheme:dark){:root{--page:#151617;--ink:#ececec;--soft:#b0b0b0;--rule:#3c3f42;--tint:#202224;
--yes:#4fc9a4;--no:#ff9d5c;--unknown:#b8b8b8;
--c0:#56b4e9;--c1:#ff8f3f;--c2:#2fc79b;--c3:#e59cc9;--c4:#e6b830;--c5:#8fd0f5;--c6:#c4c4c4;--c7:#d8cf6a}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:68rem;background:var(--page);color:var(--ink);
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25;margin:.5rem 0}
h2{font-size:1.2rem;margin:2rem 0 .5rem;padding-top:.5rem;border-top:1px solid var(--rule)}
h3{font-size:1rem;margin:1.5rem 0 .4rem}
p{margin:.5rem 0;max-width:46rem}
.soft,figcaption{color:var(--soft);font-size:.875rem}
.status{border-left:.3rem solid var(--unknown);background:var(--tint);padding:.6rem .8rem;max-width:none}
.status.yes{border-color:var(--yes)}.status.no{border-color:var(--no)}
b.yes{color:var(--yes)}b.no{color:var(--no)}b.unknown{color:var(--unknown)}
.scroll{overflow-x:auto;margin:.5rem 0}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums;overflow-wrap:normal}
th,td{padding:.25rem .8rem .25rem 0;text-align:right;vertical-align:top;border-bottom:1px solid var(--rule)}
th{font-weight:600;color:var(--soft);vertical-align:bottom;white-space:nowrap}
td.nowrap{white-space:nowrap}td.left:first-child{min-width:7.5rem}
.left{text-align:left}
dl{margin:.3rem 0;font-size:.875rem}
dl div{display:grid;grid-template-columns:minmax(0,13rem) minmax(0,1fr);gap:0 1rem;border-bottom:1px solid var(--rule);
padding:.2rem 0}
dt{color:var(--soft)}dd{margin:0}
@media (max-width:32rem){dl div{grid-template-columns:1fr}}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1rem 2rem;
align-items:start}
figure{margin:.5rem 0;min-width:0}
figure h3{margin:0 0 .3rem}
svg{display:block;width:100%;height:auto;font:11px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
svg text{fill:var(--ink)}svg .strong{font-weight:700}
.grid{stroke:var(--rule);stroke-width:.7}.axis{stroke:var(--soft)}
.median{stroke:var(--ink);stroke-width:1.5}
.area{fill:var(--c);fill-opacity:.55;stroke:var(--c);stroke-width:.8}
.rug{stroke:var(--c);stroke-width:.8}
.trace{fill:none;stroke:var(--c);stroke-width:1.6;stroke-linejoin:round}
.mark{fill:var(--c);stroke:var(--page);stroke-width:1}
.bar{fill:var(--c)}
.frontier{fill:none;stroke:var(--soft);stroke-width:1.2;stroke-dasharray:4 3}
.s0{--c:var(--c0)}.s1{--c:var(--c1)}.s2{--c:var(--c2)}.s3{--c:var(--c3)}
.s4{--c:var(--c4)}.s5{--c:var(--c5)}.s6{--c:var(--c6)}.s7{--c:var(--c7)}
.trace.s1{stroke-dasharray:7 2}.trace.s2{stroke-dasharray:3 2}.trace.s3{stroke-dasharray:8 2 2 2}
.trace.s4{stroke-dasharray:1 2}.trace.s5{stroke-dasharray:10 4}.trace.s6{stroke-dasharray:5 1}
summary{cursor:pointer;color:var(--soft);font-size:.875rem}
pre{margin:.3rem 0 1rem;padding:.6rem .8rem;background:var(--tint);font-size:.8125rem;white-space:pre-wrap}
footer{margin-top:2rem;border-top:1px solid var(--rule)}
@media print{
:root{font-size:10pt;color-scheme:light;--page:#fff;--ink:#000;--soft:#444;--rule:#bbb;--tint:#f4f4f2;
--yes:#00664a;--no:#a83c00;--unknown:#5c5c5c;
--c0:#0072b2;--c1:#c04e00;--c2:#00805e;--c3:#a84a86;--c4:#8a6500;--c5:#2a86b8;--c6:#555;--c7:#6b5b00}
@page{margin:14mm}
body{max-width:none;padding:0;print-color-adjust:exact;-webkit-print-color-adjust:exact}
.scroll{overflow:visible}table{font-size:7.5pt;width:100%}th,td{padding-right:.4rem}td.nowrap{white-space:normal}
h2,h3{break-after:avoid}figure,tr,dl div,pre{break-inside:avoid}
details::details-content{content-visibility:visible;display:block;height:auto}
.figures{grid-template-columns:minmax(0,1fr) minmax(0,1fr)}
figure table{font-size:6.5pt}figure th{white-space:normal}
figure td.left:first-child{min-width:0}figure td.left{overflow-wrap:anywhere}
}
""".strip()
