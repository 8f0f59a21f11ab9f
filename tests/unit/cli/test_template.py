"""`--format`: what people write for Docker is filled in, and what cannot be read is said."""

from __future__ import annotations

import pytest

from drupe.cli import formats
from drupe.cli.template import Template
from drupe.errors import InvalidArgument
from drupe.spec.status import ContainerStatus

VALUE = {
    "ID": "abc",
    "created_at": "today",
    "State": {"Status": "running", "Health": None},
    "Labels": {"a": "1", "b.c": "2"},
    "Ports": {"80/tcp": [{"HostPort": "8080"}, {"HostPort": "8081"}], "53/udp": []},
    "Names": ["x", "y"],
    "Running": True,
    "Evil": "\x1b[31mred\nline",
}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{{.ID}}", "abc"),
        ("id={{ .ID }}\\t{{.Names}}", "id=abc\t[x y]"),
        ("{{.CreatedAt}}", "today"),
        ("{{.State.Status}} {{.State.Health.Status}}", "running "),
        ("{{.Labels}}", "a=1,b.c=2"),
        ("{{json .Labels}}", '{"a":"1","b.c":"2"}'),
        ("{{.Names | json}}", '["x","y"]'),
        ('{{index .Labels "b.c"}}', "2"),
        ('{{(index (index .Ports "80/tcp") 0).HostPort}}', "8080"),
        ("{{range .Names}}<{{.}}>{{end}}", "<x><y>"),
        ("{{range $i, $n := .Names}}{{$i}}{{$n}}{{$.ID}} {{end}}", "0xabc 1yabc "),
        ("{{range $p, $c := .Ports}}{{$p}}:{{len $c}} {{end}}", "80/tcp:2 53/udp:0 "),
        ('{{range (index .Ports "53/udp")}}x{{else}}none{{end}}', "none"),
        ("{{if .Running}}up{{else}}down{{end}}", "up"),
        ('{{if eq .State.Status "exited"}}ended{{else}}{{upper .State.Status}}{{end}}', "RUNNING"),
        ("{{if not .Running}}a{{end}}b", "b"),
        ("{{with .State}}{{.Status}}{{end}}", "running"),
        ('{{join .Names ", "}}', "x, y"),
        ("{{.Running}} {{len .Ports}} {{println .ID}}", "true 2 abc\n"),
        ("{{.Evil}}", "\\x1b[31mred\nline"),
    ],
)
def test_is_filled(text: str, filled: str) -> None:
    assert Template(text).fill(VALUE) == filled


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{.Nope}}", "no 'Nope'"),
        ("{{.ID.More}}", "no 'More'"),
        ("{{.ID", "not closed"),
        ("{{if .ID}}x", "{{end}} is missing"),
        ("{{if .ID}}x{{else}}y", "{{end}} is missing"),
        ("x{{end}}", "{{end}} without"),
        ("{{frob .ID}}", "'frob'"),
        ("{{.ID .ID}}", "not expected"),
        ("{{(.ID}}", "parenthesis"),
        ("{{index .Names 9}}", "index does not take that"),
        ('{{index .Names "x"}}', "index does not take that"),
        ("{{len .Running}}", "len does not take that"),
        ("{{}}", "''"),
        ("{{$x}}", "'$x'"),
    ],
)
def test_is_refused_in_one_line(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Template(text).fill(VALUE)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_table_has_heads() -> None:
    template = Template("table {{.ID}}\\t{{.CreatedAt}}")
    assert template.is_table and template.heads() == ["ID", "CREATED AT"]
    assert template.fill(VALUE) == "abc\ttoday"


def test_a_listing_has_cells_under_dockers_names(capsys: pytest.CaptureFixture[str]) -> None:
    status = ContainerStatus(id="0123456789abcdef", name="web", pod="p", state="running", labels={"k": "v"})
    template = formats.read("{{.ID}} {{.Names}} {{.Status}} {{.State}} {{.Labels}}")
    row = ("0123456789ab", "web", "Up 2 hours")
    formats.show(template, [status], headers=("CONTAINER ID", "NAME", "STATUS"), row=lambda _: row)
    assert capsys.readouterr().out == "0123456789ab web Up 2 hours running k=v\n"
