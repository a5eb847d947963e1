"""Keys: no two files have the same one, and each can name a file and a tar member."""

from pathlib import PurePosixPath

from hypothesis import given
from hypothesis import strategies as st

from kinetics_tools.core.keys import (
    file_keys,
    is_key,
    label_folder,
    label_problem,
    source_video,
)

PATHS = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1)
    .filter(lambda name: name not in (".", ".."))
    .map(PurePosixPath),
    unique=True,
)


@given(PATHS)
def test_every_file_gets_its_own_key(paths: list[PurePosixPath]) -> None:
    keys = file_keys(paths)
    assert set(keys) == set(paths)
    assert all(is_key(key) for key in keys.values())
    assert len(set(keys.values())) == len(keys)


def test_a_key_is_the_stem_or_has_a_hash_of_the_path() -> None:
    paths = [PurePosixPath(p) for p in ("jump/eli_jump.avi", "a/x.avi", "b/x.avi", "a/ö.y.avi")]
    # printf a/x.avi | sha256sum | cut -c1-8
    assert list(file_keys(paths).values()) == [
        "eli_jump",
        "x-d7eeff84",
        "x-0907f08e",
        "__y-6f162940",
    ]


def test_label_folders_change_only_spaces() -> None:
    assert label_folder("hurling (sport)") == "hurling_(sport)"
    assert label_folder("massaging person's head") == "massaging_person's_head"
    assert label_folder(None) == "unlabelled"


def test_labels_that_cannot_name_a_folder_are_found() -> None:
    for label in ("../up", "a/b", "a\nb", "a\0b", ".hidden", "x" * 300, " a", "a\\b", ".."):
        assert label_problem(label) is not None, label
    assert label_problem("tying knot (not on a tie)") is None


def test_a_key_says_which_video_a_clip_was_cut_from() -> None:
    assert source_video("-0abcdefgh__000010_000020", "x") == "-0abcdefgh_"
    assert source_video("abcdefg_run_000010_000020", "run") == "abcdefg_run"
    assert source_video("v_SoccerJuggling_g23_c01") == "v_SoccerJuggling_g23"
    assert source_video("v_SoccerJuggling_g23_c02-0907f08e") == "v_SoccerJuggling_g23"
    film = "Veoh_Alpha_Dog_1"
    assert source_video(f"{film}_hit_f_nm_np1_le_med_1", "hit") == film
    assert source_video(f"{film}_brush_hair_u_cm_np2_ri_bad_12-0907f08e", "brush hair") == film
    assert source_video("daria_jack", "jack") == "daria_jack"
