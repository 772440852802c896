"""Wrong input on the command line of the egress: one line that says what is wrong, and nothing is changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tproxy.cli import main

POLICY = "rules:\n  - {networks: [build], pypi: [demo]}\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a node that has never run, and is the current directory."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/egress.yaml").write_text(POLICY)
    (tmp_path / "list").write_text("pypi demo\n")
    (tmp_path / "nonsense").write_text("nonsense\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    monkeypatch.setenv("TPROXY_EGRESS_ROOT", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("mirror add pypi dj!ango", "'dj!ango' is no requirement such as django>=4"),
        ("mirror add galaxy community", "'community' is no name for galaxy"),
        ("mirror add bogus x", "'bogus' is not one of 'pypi', 'deb'"),
        ("mirror remove pypi demo", "pypi demo is not kept in advance"),
        ("mirror run --quota 3X", "'3X' is no size such as 30G"),
        ("mirror run --update-every soon", "'soon' is no time such as 15m, 1h or 7d"),
        ("mirror run --guests-port 99999", "99999 is not in the range"),
        ("bundle create absent --output out", "'absent' does not exist"),
        ("bundle create nonsense --output out", "nonsense:1: 'nonsense' is no kind"),
        ("bundle create binary --output out", "binary is no text: byte 0 is not UTF-8"),
        ("bundle create list --output out --part-size 1X", "'1X' is no size such as 30G"),
        ("bundle import absent", "absent is not there, nor is absent.001"),
        ("bundle import list", "list is cut off, or no bundle"),
        ("bundle import etc", "cannot read etc: Is a directory"),
        ("bundle import list --scan 'it", '"\'it" is no command: No closing quotation'),
        ("bundle diff 1 2", "bundle 1 is not here; here are none"),
        ("bundle rollback", "there is no earlier bundle"),
        ("log --since soon", "'soon' is no time such as 15m, 1h or 7d"),
        ("log --verify --head nonsense", "a head reads: entry NUMBER sha256 HASH"),
        ("sbom --bundle 7", "bundle 7 is not here; here are none"),
        ("report --output absent/x.html", "cannot write absent/x.html: No such file or directory"),
        ("allow pypi de!mo", "'de!mo' is not a project"),
        ("host add hv2 --network x --node here", "'here' is not HOST:PORT"),
        ("host add hv2 --network x --node a:99999", "'a:99999' has no port from 1 to 65535"),
        ("host remove hv2", "there is no host 'hv2'"),
        ("join list", "list is not what tproxy egress host add wrote"),
        ("join binary", "binary is not what tproxy egress host add wrote"),
        ("run link", "etc/egress-link.pem: No such file or directory"),
        ("run hosts", "listen has no port for hosts"),
        ("reload", "squid has not been started here: tproxy egress up"),
        ("ca", "tproxy egress up makes one"),
        ("ca --rotate", "tproxy egress up makes one"),
    ],
)
def test_wrong_input_gets_one_line_and_changes_nothing(
    root: Path,
    words: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["tproxy", "egress", *words.split(" ")])
    with pytest.raises(SystemExit) as ended:
        main.run()
    shown = capsys.readouterr()
    assert ended.value.code not in (0, None)
    assert said in shown.err
    assert shown.err.startswith("tproxy: ")
    assert shown.err.count("\n") == 1
    assert "internal error" not in shown.err
    assert shown.out == ""
    assert (root / "etc/egress.yaml").read_text() == POLICY
    assert not list(root.glob("out*"))


def test_allow_edits_the_policy_of_the_node(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["tproxy", "egress", "allow", "pypi", "other", "--network", "build"])
    with pytest.raises(SystemExit):
        main.run()
    assert "other" in (root / "etc/egress.yaml").read_text()
    assert capsys.readouterr().out.startswith(f"{root}/etc/egress.yaml: other is allowed to network build")
