"""YAML files become what is desired, and a file that breaks takes nothing away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lorafleet_operator.core.objects import Ref
from lorafleet_operator.folder import Folder
from lorafleet_operator.yaml_files import parse

BASE = """
apiVersion: lorafleet.dev/v1alpha1
kind: BaseModel
metadata: {name: tiny, namespace: models}
spec: {source: {uri: "file:model.gguf"}, allowedNamespaces: {from: All}}
"""


def lora(name: str, extra: str = "") -> str:
    return f"""
apiVersion: lorafleet.dev/v1alpha1
kind: LoRAAdapter
metadata: {{name: {name}, namespace: acme}}
spec: {{baseModelRef: {{namespace: models, name: tiny}}, source: {{uri: "file:{name}"}}{extra}}}
"""


def settle(folder: Folder) -> bool:
    """Look until a change of the files has been taken: two looks that agree."""
    return any([folder.scan(), folder.scan()])


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "adapters.yml").write_text(lora("a") + "---" + lora("b"))
    return tmp_path


@pytest.fixture
def folder(yaml: Path) -> Folder:
    folder = Folder([yaml])
    folder.scan()
    return folder


def adapters(folder: Folder) -> list[str]:
    return sorted(ref.name for ref in folder.desired.adapters)


def test_a_folder_is_read_at_its_first_look_with_several_documents_a_file(folder: Folder, yaml: Path) -> None:
    source = folder.desired.adapters[Ref("acme", "a")].source

    assert list(folder.desired.base_models) == [Ref("models", "tiny")]
    assert adapters(folder) == ["a", "b"]
    assert (source.uri, source.base_dir) == ("file:a", str(yaml))
    assert folder.desired.problems == ()


def test_folders_inside_and_other_files_are_not_read(yaml: Path) -> None:
    (yaml / "deeper").mkdir()
    (yaml / "deeper" / "more.yaml").write_text(lora("c"))
    (yaml / "adapter_config.json").write_text("{}")
    (yaml / ".hidden.yaml").write_text("{")
    (yaml / "kept.yaml~").write_text("{")
    folder = Folder([yaml])
    folder.scan()

    assert adapters(folder) == ["a", "b"]
    assert folder.desired.problems == ()


def test_paths_may_be_repeated_and_be_files_or_folders(yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "c.yaml").write_text(lora("c"))
    folder = Folder([yaml / "base.yaml", other, other / "c.yaml"])
    folder.scan()

    assert adapters(folder) == ["c"]
    assert folder.desired.problems == ()


def test_nothing_is_new_while_no_file_changes(folder: Folder) -> None:
    desired = folder.desired

    assert not settle(folder)
    assert folder.desired is desired


def test_an_edit_an_addition_and_a_removal_take_effect(folder: Folder, yaml: Path) -> None:
    (yaml / "adapters.yml").write_text(lora("a", ", pinned: true"))
    (yaml / "new.yaml").write_text(lora("c"))
    settle(folder)

    assert adapters(folder) == ["a", "c"]
    assert folder.desired.adapters[Ref("acme", "a")].pinned

    (yaml / "new.yaml").unlink()
    settle(folder)

    assert adapters(folder) == ["a"]


def test_a_file_is_taken_only_when_two_looks_agree(folder: Folder, yaml: Path) -> None:
    (yaml / "adapters.yml").write_text("")
    first = folder.scan()
    (yaml / "adapters.yml").write_text(lora("a") + "---" + lora("c"))
    second, third = folder.scan(), folder.scan()

    assert (first, second, third) == (False, False, True)
    assert adapters(folder) == ["a", "c"]


def test_a_file_that_is_away_for_one_look_is_not_removed(folder: Folder, yaml: Path) -> None:
    text = (yaml / "adapters.yml").read_text()
    (yaml / "adapters.yml").unlink()
    folder.scan()
    (yaml / "adapters.yml").write_text(text)
    settle(folder)

    assert adapters(folder) == ["a", "b"]


def test_an_editor_that_renames_a_new_file_over_the_old_is_noticed(folder: Folder, yaml: Path) -> None:
    before = (yaml / "adapters.yml").stat()
    draft = yaml / "draft"
    draft.write_text(lora("a") + "---" + lora("c"))
    os.utime(draft, ns=(before.st_atime_ns, before.st_mtime_ns))
    draft.replace(yaml / "adapters.yml")
    settle(folder)

    assert adapters(folder) == ["a", "c"]


def test_a_link_is_followed_and_noticed_when_it_points_elsewhere(tmp_path: Path) -> None:
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "fleet.yaml").write_text(lora(version))
    link, shown = tmp_path / "current", tmp_path / "shown"
    link.symlink_to("one")
    shown.mkdir()
    (shown / "fleet.yaml").symlink_to("../current/fleet.yaml")
    folder = Folder([shown])
    folder.scan()
    link.unlink()
    link.symlink_to("two")
    settle(folder)

    assert [name for key in folder.desired.set_aside for name in [key.name]] == ["two"]


def test_a_broken_file_gives_one_message_and_keeps_all_it_declared(folder: Folder, yaml: Path) -> None:
    (yaml / "adapters.yml").write_text(lora("a") + "---\nkind: [")
    (yaml / "new.yaml").write_text(lora("c"))
    settle(folder)
    news = folder.news()

    assert adapters(folder) == ["a", "b", "c"]
    assert len(news) == 1
    assert news[0].where.endswith("adapters.yml")
    assert "is not YAML: line 7" in news[0].message
    assert folder.news() == []


def test_a_repaired_file_takes_effect_and_its_message_goes(folder: Folder, yaml: Path) -> None:
    (yaml / "adapters.yml").write_text("{")
    settle(folder)
    (yaml / "adapters.yml").write_text(lora("b"))
    settle(folder)

    assert adapters(folder) == ["b"]
    assert folder.desired.problems == ()


def test_one_wrong_object_keeps_its_last_good_form_and_its_neighbours_move_on(folder: Folder, yaml: Path) -> None:
    (yaml / "adapters.yml").write_text(lora("a", ", copies: {min: many}") + "---" + lora("b", ", pinned: true"))
    settle(folder)
    (problem,) = folder.news()

    assert adapters(folder) == ["a", "b"]
    assert folder.desired.adapters[Ref("acme", "b")].pinned
    assert "adapters.yml: LoRAAdapter acme/a" in str(problem)
    assert problem.field == ".spec.copies.min"


def test_a_document_without_a_name_leaves_the_whole_file_as_it_was(folder: Folder, yaml: Path) -> None:
    (yaml / "adapters.yml").write_text(lora("a") + "---\nhello: world\n")
    settle(folder)
    (problem,) = folder.news()

    assert adapters(folder) == ["a", "b"]
    assert "adapters.yml:7" in problem.where


def test_a_file_that_was_never_good_takes_nothing_away(folder: Folder, yaml: Path) -> None:
    (yaml / "zz.yaml").write_text("{")
    settle(folder)

    assert adapters(folder) == ["a", "b"]
    assert not folder.desired.complete


def test_an_object_in_two_files_is_a_problem_that_names_both(folder: Folder, yaml: Path) -> None:
    (yaml / "twice.yaml").write_text(lora("a"))
    settle(folder)
    (problem,) = folder.news()

    assert "twice.yaml" in str(problem)
    assert "adapters.yml" in str(problem)
    assert adapters(folder) == ["a", "b"]


def test_a_key_written_twice_is_a_mistake_with_its_line(yaml: Path) -> None:
    (yaml / "base.yaml").write_text("kind: A\nspec:\n  x: 1\n  x: 2\n")
    problem = parse(yaml / "base.yaml", "base.yaml").problem

    assert str(problem) == "base.yaml: is not YAML: line 4, column 3: 'x' is written twice"


@pytest.mark.parametrize("text", ["a: !!python/object/apply:os.system [id]", "\t", "[" * 600, "a: *nowhere", "\x00"])
def test_no_text_breaks_the_reader(yaml: Path, text: str) -> None:
    (yaml / "base.yaml").write_text(text)

    assert parse(yaml / "base.yaml", "base.yaml").problem is not None


def test_a_named_path_that_vanishes_is_missed_not_obeyed(folder: Folder, yaml: Path) -> None:
    yaml.rename(yaml.with_name("moved"))
    settle(folder)
    (problem,) = folder.news()

    assert adapters(folder) == ["a", "b"]
    assert problem.reason == "Missing"

    yaml.with_name("moved").rename(yaml)
    settle(folder)

    assert folder.desired.problems == ()


def test_a_list_of_objects_is_its_items(yaml: Path) -> None:
    (yaml / "adapters.yml").write_text(
        "apiVersion: v1\nkind: List\nitems:\n- " + lora("a").strip().replace("\n", "\n  ")
    )
    folder = Folder([yaml])
    folder.scan()

    assert adapters(folder) == ["a"]
