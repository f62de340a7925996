"""Models by name: the list, the cache, and downloads from a server that breaks off, lies, or is away."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from zipfile import ZipFile

import numpy as np
import pytest
from tiny_models import MODELS
from web_server import Site, serving

from flashelmo import ElmoEmbedder, FlashElmoError, load_model
from flashelmo.cli import main
from flashelmo.engine.model.checkpoints.bilm import write_bilm
from flashelmo.engine.model.named import download as downloads
from flashelmo.engine.model.named import locate as locating
from flashelmo.engine.model.named import table
from flashelmo.engine.model.named.download import check, download
from flashelmo.engine.model.named.locate import NAME, locate
from flashelmo.engine.model.named.table import RECORD, NamedFile, NamedModel, named_models

SENTENCE = ["the", "cat", "sat"]
Run = Callable[..., str]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HOME", *table.OFFLINE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLASHELMO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(downloads, "PAUSE", 0.0)
    monkeypatch.setattr(downloads, "CHUNK", 1000)
    return tmp_path / "home"


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("published") / "little"
    write_bilm(MODELS["skip"], folder)
    with ZipFile(folder.parent / "little.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"little/{path.name}")
    return {f"/{path.name}": path.read_bytes() for path in (*folder.iterdir(), folder.parent / "little.zip")}


@pytest.fixture
def site(contents: dict[str, bytes]) -> Iterator[Site]:
    with serving(Site(dict(contents))) as site:
        yield site


def model_of(site: Site, *names: str, **sums: str) -> NamedModel:
    files = {name: NamedFile(f"{site.address}/{name}", sums.get(name.partition(".")[0])) for name in names}
    return NamedModel("little", "A little one", "https://example.org", "bilm", "en", "MIT", 3, 8, 6, files)


@pytest.fixture
def little(site: Site) -> NamedModel:
    return model_of(site, "weights.hdf5", "options.json")


@pytest.fixture
def listed(little: NamedModel, home: Path, monkeypatch: pytest.MonkeyPatch) -> NamedModel:
    models = {**named_models(), "little": little}
    monkeypatch.setattr(table, "named_models", lambda: models)
    monkeypatch.setattr(locating, "named_models", lambda: models)
    return little


def sum_of(site: Site, path: str) -> str:
    return sha256(site.files[path]).hexdigest()


def test_the_list_is_whole() -> None:
    models = named_models()
    assert {"small", "medium", "original", "original_5.5B", "pubmed", "portuguese", "seqvec"} < set(models)
    assert len([name for name in models if name.startswith("manylangs-")]) == 44
    for name, model in models.items():
        assert NAME.fullmatch(name) and model.name == name
        assert set(model.files) in ({"weights.hdf5", "options.json"}, {"model.zip"}), name
        addresses = [file.url for file in model.files.values()]
        assert all(url.startswith(("https://", "http://vectors.nlpl.eu/")) for url in addresses), name
        assert all(file.sha256 is None or len(file.sha256) == 64 for file in model.files.values())
    addresses = [file.url for model in models.values() for file in model.files.values()]
    assert len(set(addresses)) == len(addresses)


def test_a_name_is_downloaded_once_and_embeds_as_its_files(listed: NamedModel, home: Path, site: Site) -> None:
    expected = ElmoEmbedder(MODELS["skip"], precision="fp32").embed_sentence(SENTENCE)
    for _ in range(2):
        found = ElmoEmbedder.load("little", precision="fp32")
        np.testing.assert_array_equal(found.embed_sentence(SENTENCE), expected)
    assert sorted(site.asked) == [("/options.json", ""), ("/weights.hdf5", "")]
    assert load_model("little").path == home / "little" / "weights.hdf5"
    record = json.loads((home / "little" / "download.json").read_text())
    assert record["files"]["weights.hdf5"] == {
        "url": f"{site.address}/weights.hdf5",
        "sha256": sum_of(site, "/weights.hdf5"),
    }
    assert sorted(path.name for path in home.iterdir()) == [".little.lock", "little"]


def test_an_embedder_of_a_name_is_copied_by_the_path(listed: NamedModel, home: Path) -> None:
    assert ElmoEmbedder.load("little").__reduce__()[0].args == (str(home / "little" / "weights.hdf5"),)


@pytest.mark.parametrize("where", ["a log", "a notebook", "nowhere"])
def test_where_progress_is_shown(
    where: str, little: NamedModel, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A notebook's standard error is no terminal, and a program without a window or a console has none."""
    if where == "a notebook":
        monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    if where == "nowhere":
        monkeypatch.setattr(sys, "stderr", None)
    assert (download(little, home) / "weights.hdf5").is_file()
    assert ("weights.hdf5: 100%" in capsys.readouterr().err) == (where == "a notebook")


def test_a_path_that_exists_wins(listed: NamedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_bilm(MODELS["no skip"], tmp_path / "little")
    assert locate(Path("little")) == Path("little")
    assert load_model("little").config == MODELS["no skip"].config


def test_an_unknown_name_lists_what_there_is(home: Path) -> None:
    with pytest.raises(FlashElmoError) as error:
        ElmoEmbedder.load("orignal")
    message = str(error.value)
    assert message.startswith(
        "orignal: no such file or folder, and no model's name; there are tiny, small, medium, original,"
    )
    assert "manylangs-LANGUAGE (ar, bg," in message and message.endswith("vi, zh)")
    for path in ("folder/original", "weights.hdf5", "../medium"):
        assert locate(Path(path)) == Path(path)


def test_an_archive_is_unpacked(site: Site, home: Path) -> None:
    folder = download(model_of(site, "little.zip", little=sum_of(site, "/little.zip")), home)
    assert sorted(path.name for path in folder.rglob("*")) == [
        "download.json",
        "little",
        "options.json",
        "weights.hdf5",
    ]
    assert load_model(folder).config == MODELS["skip"].config
    site.files["/little.zip"] = site.files["/little.zip"][:-50]
    with pytest.raises(FlashElmoError, match="expected a whole zip or tar archive"):
        download(model_of(site, "little.zip"), home / "other")
    assert not (home / "other" / "little").exists()


def test_what_breaks_off_goes_on_where_it_ended(little: NamedModel, site: Site, home: Path) -> None:
    site.cuts["/weights.hdf5"] = [3000, 2000, 0]
    folder = download(little, home)
    asked = [wanted for path, wanted in site.asked if path == "/weights.hdf5"]
    assert asked == ["", "bytes=3000-", "bytes=5000-", "bytes=5000-"]
    assert (folder / "weights.hdf5").read_bytes() == site.files["/weights.hdf5"]
    assert check(folder) == []


def test_a_later_run_goes_on_too(little: NamedModel, site: Site, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    site.cuts["/weights.hdf5"] = [4000]
    with pytest.raises(FlashElmoError, match=r"^little: .*weights\.hdf5.*; what is there of it is kept$"):
        download(little, home)
    assert not (home / "little").exists()
    assert (home / ".little" / "weights.hdf5.part").stat().st_size == 4000
    download(little, home)
    assert site.asked[1] == ("/weights.hdf5", "bytes=4000-")
    assert (home / "little" / "weights.hdf5").read_bytes() == site.files["/weights.hdf5"]


@pytest.mark.parametrize("change", ["another file", "a shorter file", "no ranges", "no tag"])
def test_what_cannot_go_on_begins_again(
    little: NamedModel, site: Site, home: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The file changed in the meantime, or the server gives no parts: nothing of the old one stays."""
    site.etag = "" if change == "no tag" else '"1"'
    site.ranges = change != "no ranges"
    site.cuts["/weights.hdf5"] = [4000]
    with monkeypatch.context() as patch:
        patch.setattr(downloads, "ATTEMPTS", 1)
        with pytest.raises(FlashElmoError):
            download(little, home)
    if change == "another file":
        site.etag = '"2"'
        site.files["/weights.hdf5"] = bytes(reversed(site.files["/weights.hdf5"]))
    if change == "a shorter file":  # under the same tag
        site.files["/weights.hdf5"] = site.files["/weights.hdf5"][:4000]
    folder = download(little, home)
    assert (folder / "weights.hdf5").read_bytes() == site.files["/weights.hdf5"]


def test_a_wrong_sum_is_not_kept(site: Site, home: Path) -> None:
    with pytest.raises(
        FlashElmoError, match=r"/weights.hdf5: expected sha256 0{64}, as published by its authors, found"
    ):
        download(model_of(site, "weights.hdf5", "options.json", weights="0" * 64), home)
    assert [path for path in home.rglob("*") if path.is_file() and path.name != ".little.lock"] == []
    assert len(site.asked) == 1, "a wrong file is not asked for again"


def test_the_first_download_is_what_later_ones_are_compared_with(little: NamedModel, site: Site, home: Path) -> None:
    folder = download(little, home)
    (folder / "weights.hdf5").write_bytes(b"damaged")
    assert [problem.partition(": ")[0] for problem in check(folder)] == [str(folder / "weights.hdf5")]
    download(little, home, overwrite=True)
    assert check(folder) == []
    site.files["/weights.hdf5"] += b"more"
    with pytest.raises(FlashElmoError, match="as in the first download, found another"):
        download(little, home, overwrite=True)
    assert check(folder) == [], "what was there stays"
    for text in ("{}", '{"files": 3, "contents": {}}', '{"files": {"weights.hdf5": 3}, "contents": null}'):
        (folder / RECORD).write_text(text, encoding="utf-8")
        with pytest.raises(FlashElmoError, match=r"download\.json: expected the (files|contents) of a download; to"):
            check(download(little, home, overwrite="files" in text))


def test_what_is_not_there(site: Site, home: Path) -> None:
    with pytest.raises(FlashElmoError, match=r"^little: http.*/absent.hdf5: the server says 404 Not Found"):
        download(model_of(site, "absent.hdf5"), home)
    assert len(site.asked) == 1
    away = replace(model_of(site, "w.hdf5"), files={"w.hdf5": NamedFile("http://127.0.0.1:9/w.hdf5")})
    with pytest.raises(FlashElmoError, match=r"^little: .*127.0.0.1"):
        download(away, home)


@pytest.mark.parametrize("variable", table.OFFLINE)
def test_offline(listed: NamedModel, home: Path, site: Site, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(FlashElmoError, match=f"^little: not in {home}, and {variable} forbids downloads$"):
        ElmoEmbedder.load("little")
    assert site.asked == [] and not home.exists()
    monkeypatch.setenv(variable, "0")
    load_model("little")
    monkeypatch.setenv(variable, "yes")
    assert load_model("little").config == MODELS["skip"].config


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLASHELMO_HOME", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert table.home() == tmp_path / "xdg" / "flashelmo"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert table.home() == tmp_path / "hf" / "flashelmo"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FLASHELMO_HOME", "~/mine")
    assert table.home() == tmp_path / "mine"
    monkeypatch.setenv("FLASHELMO_HOME", "s3://bucket/models")
    with pytest.raises(FlashElmoError, match=r"^FLASHELMO_HOME: expected a path on this machine"):
        table.home()


def test_a_user_without_a_home_folder(
    listed: NamedModel, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("FLASHELMO_HOME", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert main(["download", "little"]) == 1
    expected = "flashelmo: FLASHELMO_HOME: expected the folder of downloaded models, as this user has no home folder\n"
    assert capfd.readouterr().err == expected


def test_the_commands(listed: NamedModel, home: Path, succeed: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert not json.loads(succeed("models", "--json").partition("\nsize")[0])[-1]["downloaded"]
    assert str(home / "little") in succeed("download", "little")
    assert "little: verified; licence: MIT" in succeed("download", "little")
    assert json.loads(succeed("download", "little", "--json"))["folder"] == str(home / "little")
    listing = json.loads(succeed("models", "--json"))
    assert [row["downloaded"] for row in listing if row["name"] in ("small", "little")] == [False, True]
    lines = succeed("models").splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["name", "small", "medium"]
    (home / "little" / "options.json").write_text("{}")
    assert main(["download", "little"]) == 1
    assert "options.json: expected sha256 " in capfd.readouterr().err
    succeed("download", "little", "--overwrite")
    assert main(["download", "huge"]) == 1
    assert capfd.readouterr().err.startswith(
        "flashelmo: huge: no model's name; there are tiny, small, medium, original, "
    )


def test_a_command_takes_a_name(
    listed: NamedModel, home: Path, tmp_path: Path, succeed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("the cat\n")
    succeed("embed", "text.txt", "v.h5", "--model", "little")
    succeed("embed", "text.txt", "shards", "--model", "little")
    succeed("elmo", "text.txt", "w.h5", "--all", "--weight-file", "little")
    assert "output_size: 8" in succeed("info", "little")
    assert main(["embed", "text.txt", str(home / "little" / "options.json"), "--model", "little", "--overwrite"]) == 1
    shutil.rmtree(home)
