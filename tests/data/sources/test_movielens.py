import zipfile

import pytest

from data.filters import Filters
from data.processed import DataConfig, RecDataset, load_corpus
from data.schemas import UserError
from data.sources.ml_1m import load_ml1m, read_ml1m
from data.sources.ml_32m import load_ml32m
from data.sources.movielens import describe_movies
from tests.examples import Example
from tests.synthetic import to_lists, write_movielens

MOVIES_DAT = "1::Ox Tale (1995)::Animation|Children's\n2::Misérables, Les (1998)::Drama\n7::Nobody's Film (2000)::Comedy\n"
RATINGS_DAT = "6::2::5::978300760\n6::1::3::978300750\n5::1::4::978300000\n5::2::1::978300000\n"
MOVIES_CSV = (
    "movieId,title,genres\n12,Notes (2006\N{EN DASH}2007),Crime\n"
    '1,"Fox, The (1995)",Adventure|Animation\n3,"""Quoted"" One (1997)",Comedy\n9,Serial 5,(no genres listed)\n'
)
RATINGS_CSV = "userId,movieId,rating,timestamp\n1,3,4.5,964982703\n1,1,0.5,964981247\n2,12,4.0,964981247\n2,3,3.0,964982224\n"
FILES = {
    "ml-1m": {"movies.dat": MOVIES_DAT.encode("latin-1"), "ratings.dat": RATINGS_DAT.encode()},
    "ml-latest-small": {"movies.csv": MOVIES_CSV.encode(), "ratings.csv": RATINGS_CSV.encode()},
}
SPLITS = list(FILES)


def write(folder, split, **changed):
    raw = folder / "raw" / split
    raw.mkdir(parents=True, exist_ok=True)
    for name, content in FILES[split].items():
        content = changed.get(name.split(".")[0], content)
        (raw / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def load(folder, split, **kept):
    if split == "ml-1m":
        return load_ml1m(folder, Filters(**kept))
    return load_ml32m(folder, split, Filters(**kept))


def test_the_files_of_ml_1m_become_a_corpus(tmp_path):
    corpus, notes = load(write(tmp_path, "ml-1m"), "ml-1m")
    assert corpus.item_keys == ["1", "2", "7"]
    assert corpus.titles == ["Ox Tale (1995)", "Misérables, Les (1998)", "Nobody's Film (2000)"]
    assert corpus.texts[:2] == [
        "Title: Ox Tale; Year: 1995; Genres: Animation, Children's",
        "Title: Misérables, Les; Year: 1998; Genres: Drama",
    ]
    assert corpus.categories[:2] == ["Animation, Children's", "Drama"]
    assert corpus.user_keys == ["6", "5"]
    assert to_lists(corpus.histories) == [[0, 1], [0, 1]]
    assert corpus.times.tolist() == [978300750, 978300760, 978300000, 978300000]
    assert notes == []


def test_the_files_of_ml_32m_become_a_corpus(tmp_path):
    corpus, notes = load(write(tmp_path, "ml-latest-small"), "ml-latest-small")
    assert corpus.item_keys == ["12", "1", "3", "9"]
    assert corpus.titles == ["Notes (2006\N{EN DASH}2007)", "Fox, The (1995)", '"Quoted" One (1997)', "Serial 5"]
    assert corpus.texts == [
        "Title: Notes; Year: 2006; Genres: Crime",
        "Title: Fox, The; Year: 1995; Genres: Adventure, Animation",
        'Title: "Quoted" One; Year: 1997; Genres: Comedy',
        "Title: Serial 5",
    ]
    assert to_lists(corpus.histories) == [[1, 2], [0, 2]]
    assert notes == []


@pytest.mark.parametrize("split", SPLITS)
def test_what_is_kept_is_a_matter_of_the_config_and_each_choice_has_its_own_cache(tmp_path, split):
    folder = write(tmp_path, split)
    dataset = RecDataset.ML_1M if split == "ml-1m" else RecDataset.ML_32M
    base = {"dataset": dataset, "folder": str(folder), "split": split}
    everything = load_corpus(DataConfig(**base))
    liked = load_corpus(DataConfig(**base, min_rating=3.0))
    last = load_corpus(DataConfig(**base, max_history=1))
    warm = load_corpus(DataConfig(**base, cold_items=False))
    assert [len(corpus.histories.item_ids) for corpus in (everything, liked, last, warm)] == [4, 3, 2, 4]
    assert len(everything.item_keys) == len(liked.item_keys) > len(warm.item_keys)
    assert len(list((folder / "processed").iterdir())) == 4
    again = load_corpus(DataConfig(**base))
    assert again[:4] == everything[:4]
    assert again.times.tolist() == everything.times.tolist()


@pytest.mark.parametrize("split", SPLITS)
def test_windows_line_ends_read_like_unix_ones(tmp_path, split):
    unix = load(write(tmp_path / "a", split), split).corpus
    content = {name.split(".")[0]: text.replace(b"\n", b"\r\n") for name, text in FILES[split].items()}
    windows = load(write(tmp_path / "b", split, **content), split).corpus
    assert unix[:4] == windows[:4]
    assert to_lists(unix.histories) == to_lists(windows.histories)


@pytest.mark.parametrize("split", SPLITS)
def test_the_planted_order_is_read_back(tmp_path, split):
    truth = write_movielens(tmp_path, split, 30, 40)
    corpus = load(tmp_path, split).corpus
    assert to_lists(corpus.histories) == truth.histories
    assert corpus.user_keys == [str(user + 1) for user in range(30)]


def test_the_most_recent_ratings_are_kept_unless_a_config_says_otherwise(tmp_path):
    ratings = "".join(f"6::{1 + number % 2}::5::{number}\n" for number in range(300))
    folder = write(tmp_path, "ml-1m", ratings=ratings)
    kept = load_corpus(DataConfig(RecDataset.ML_1M, str(folder), "ml-1m"))
    assert kept.times.tolist() == list(range(100, 300))
    assert len(load_corpus(DataConfig(RecDataset.ML_1M, str(folder), "ml-1m", max_history=0)).times) == 300


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"ratings": RATINGS_DAT.replace("::", ",")}, r"ratings.dat:1 does not have 4 '::'-separated fields \(user, movie, rating, time\)"),
        ({"ratings": RATINGS_DAT + "6::9::1::5\n"}, "ratings.dat:5 has a movie that movies.dat lacks"),
        ({"ratings": RATINGS_DAT + "-6::2::1::5\n"}, "ratings.dat:5 has a negative user id"),
        ({"ratings": RATINGS_DAT + "6::2::nan::5\n"}, "ratings.dat:5 has a rating that is no number"),
        ({"ratings": RATINGS_DAT + "6::2::4::later\n"}, "ratings.dat:5 has a time that is no number"),
        ({"ratings": RATINGS_DAT + "6::2::4\n"}, "ratings.dat:5 does not have 4"),
        ({"movies": MOVIES_DAT.encode("latin-1") + b"2::Twice (1999)::Drama\n"}, "movies.dat:4 repeats a movie id"),
        ({"movies": b""}, "movies.dat is empty"),
    ],
)
def test_a_bad_line_of_ml_1m_is_named(tmp_path, changed, sentence):
    with pytest.raises(UserError, match=sentence):
        load(write(tmp_path, "ml-1m", **changed), "ml-1m")
    assert not (tmp_path / "processed").exists()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"ratings": RATINGS_CSV.replace(",", ";")}, "ratings.csv:1 lacks the column userId and has no separator"),
        ({"ratings": RATINGS_CSV.replace("movieId", "item")}, "ratings.csv:1 lacks the column movieId"),
        ({"ratings": RATINGS_CSV + "2,8,4.0,1\n"}, "ratings.csv:6 has a movie that movies.csv lacks"),
        ({"ratings": RATINGS_CSV + "2,1,4.0,soon\n"}, "ratings.csv:6 has 'soon' for timestamp; expected .*a whole number"),
        ({"ratings": RATINGS_CSV + "2,1,NaN,1\n"}, "ratings.csv:6 has a rating that is no number"),
        ({"ratings": RATINGS_CSV + "2,1,4.0\n"}, "ratings.csv:6 has no timestamp"),
        ({"ratings": RATINGS_CSV + "2,1,4.0,1,7\n"}, "ratings.csv:6 has 5 fields, not 4"),
        ({"ratings": RATINGS_CSV + "\n2,1,4.0,1\n"}, "ratings.csv:6 has no userId"),
        ({"ratings": RATINGS_CSV.splitlines()[0] + "\n"}, "ratings.csv has a header and no rows"),
        ({"movies": MOVIES_CSV + "4,Caf\xe9,Drama\n".encode("latin-1").decode("latin-1")}, None),
        ({"movies": MOVIES_CSV.encode() + b"4,Caf\xe9 (1999),Drama\n"}, "movies.csv:6 is not UTF-8"),
        ({"movies": MOVIES_CSV + '4,"Two\nLines (1999)",Drama\n-5,Below,Drama\n'}, "movies.csv:8 has a negative movie id"),
        ({"movies": MOVIES_CSV + "1,Again,Drama\n"}, "movies.csv:6 repeats a movie id"),
    ],
)
def test_a_bad_line_of_ml_32m_is_named(tmp_path, changed, sentence):
    folder = write(tmp_path, "ml-latest-small", **changed)
    if sentence is None:
        assert load(folder, "ml-latest-small").corpus.titles[-1] == "Café"
        return
    with pytest.raises(UserError, match=sentence):
        load(folder, "ml-latest-small")
    assert not (tmp_path / "processed").exists()


def test_extra_columns_are_passed_over(tmp_path):
    ratings = "".join(f"{line},{extra}\n" for line, extra in zip(RATINGS_CSV.splitlines(), ("mood", "a", "b", "", "d")))
    assert len(load(write(tmp_path, "ml-latest-small", ratings=ratings), "ml-latest-small").corpus.histories.item_ids) == 4


def test_titles_of_any_shape_become_texts():
    titles, texts, genres = describe_movies(
        ["", "A  B\x1b[2J (1999)", "2001 (1968) ", "(500) Days", "Until (1999- )"], ["", "", "Sci-Fi", "Drama", ""]
    )
    assert titles == ["", "A B [2J (1999)", "2001 (1968)", "(500) Days", "Until (1999- )"]
    assert texts[1:] == [
        "Title: A B [2J; Year: 1999",
        "Title: 2001; Year: 1968; Genres: Sci-Fi",
        "Title: (500) Days; Genres: Drama",
        "Title: Until; Year: 1999",
    ]
    assert genres == ["", "", "Sci-Fi", "Drama", ""]


def test_an_archive_laid_by_hand_is_enough(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    with zipfile.ZipFile(raw / "ml-latest-small.zip", "w") as archive:
        for name, content in FILES["ml-latest-small"].items():
            archive.writestr(f"ml-latest-small/{name}", content)
        archive.writestr("ml-latest-small/tags.csv", "not needed")
    assert len(load(tmp_path, "ml-latest-small").corpus.item_keys) == 4
    assert sorted(path.name for path in (raw / "ml-latest-small").iterdir()) == ["movies.csv", "ratings.csv"]


def test_an_archive_that_climbs_out_is_refused_whole(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    with zipfile.ZipFile(raw / "ml-1m.zip", "w") as archive:
        for name, content in FILES["ml-1m"].items():
            archive.writestr(f"ml-1m/{name}", content)
        archive.writestr("../../evil.txt", "x")
    with pytest.raises(UserError, match=r"is refused: its member '\.\./\.\./evil.txt'"):
        load(tmp_path, "ml-1m")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["ml-1m.zip"]


def test_the_cache_holds_what_reading_gives(tmp_path):
    raw = write(tmp_path, "ml-1m") / "raw" / "ml-1m"
    direct = read_ml1m(raw / "movies.dat", raw / "ratings.dat", Filters()).corpus
    assert direct[:4] == load(tmp_path, "ml-1m").corpus[:4]


def test_a_copy_of_ml_1m_in_utf_8_keeps_its_letters(tmp_path):
    assert load(write(tmp_path, "ml-1m", movies=MOVIES_DAT), "ml-1m").corpus.titles[1] == "Misérables, Les (1998)"


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (
            {"ratings": RATINGS_CSV + "1,3000000000,5,5\n"},
            r"ratings.csv:\d+ has '3000000000' for movieId; expected .* below 2\^31",
        ),
        ({"ratings": RATINGS_CSV + "1,1,\u0663,5\n"}, r"ratings.csv:\d+ has '\u0663' for rating; expected a number"),
        ({"movies": MOVIES_CSV.replace("title", "name", 1)}, "movies.csv:1 lacks the column title"),
    ],
)
def test_what_polars_would_say_in_its_own_words_has_a_line(tmp_path, files, sentence):
    with pytest.raises(UserError, match=sentence):
        load(write(tmp_path, "ml-latest-small", **files), "ml-latest-small")


EXAMPLES = [
    Example(RecDataset.ML_1M, "ml-1m", write_movielens, users=300),
    Example(RecDataset.ML_32M, "ml-latest-small", write_movielens, users=300),
]
