"""Tables: what becomes of cells, statistics of the training part alone, and every problem told by line and column."""

import gzip
import os
import re

import jax
import numpy as np
import optax
import pytest

from jaxnn import data, losses, metrics, models, train

HOUSES = "rooms,town,price\n3,Oslo,100\n4,Bergen,200\n5,Oslo,300\n"
QUIET = train.Log(progress=False)


@pytest.fixture
def write(tmp_path):
    def write(content, name="t.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return path

    return write


# What becomes of cells


def test_numbers_are_scaled_and_categories_become_inputs(write):
    table = data.CSV(write(HOUSES), "price")
    assert table.inputs == ["rooms", "town=Bergen", "town=Oslo"]
    assert (table.targets, table.classes, table.outputs, len(table)) == (["price"], None, 1, 3)
    a = np.sqrt(1.5)
    np.testing.assert_allclose(table.arrays["x"], [[-a, 0, 1], [0, 1, 0], [a, 0, 1]], atol=1e-6)
    assert table.arrays["y"].tolist() == [[100], [200], [300]]
    assert {str(v.dtype) for v in table.arrays.values()} == {"float32"}
    assert table.lines.tolist() == [2, 3, 4]
    assert repr(table) == "CSV(t.csv: 3 rows, target price: x=float32[3, 3], y=float32[3, 1])"
    rows = np.array([2, 0])
    taken = table.take(rows)
    assert taken["y"].tolist() == [[300], [100]]
    resident = table.resident()
    for name, array in resident.take(resident.arrays, rows).items():
        np.testing.assert_array_equal(array, taken[name])


def test_as_they_are_on_request(write):
    table = data.CSV(write(HOUSES), "price", standardize=False)
    assert table.arrays["x"].tolist() == [[3, 0, 1], [4, 1, 0], [5, 0, 1]]


def test_several_targets_scaled_and_back(write):
    path = write("a,b,c\n1,10,5\n2,20,7\n3,60,9\n")
    table = data.CSV(path, ["c", "b"], standardize_target=True)
    assert table.outputs == 2
    np.testing.assert_allclose(table.arrays["y"].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(table.arrays["y"].std(0), 1, atol=1e-6)
    back = table.decode(table.arrays["y"])
    assert list(back) == ["predicted_c", "predicted_b"]
    np.testing.assert_allclose(back["predicted_b"], [10, 20, 60], rtol=1e-6)
    # Without scaling, outputs are in the file's units already.
    plain = data.CSV(path, "c").decode(np.array([5.0, 7.0, 9.0]))
    assert plain["predicted_c"].tolist() == [5, 7, 9]


def test_texts_are_classes_and_numbers_on_request(write):
    table = data.CSV(write("x,kind\n1,b\n2,a\n3,b\n"), "kind")
    assert (table.classes, table.outputs) == (["a", "b"], 2)
    assert table.arrays["y"].tolist() == [1, 0, 1]
    assert table.arrays["y"].dtype == np.int32
    digits = data.CSV(write("x,digit\n1,10\n2,9\n3,10\n"), -1, classes=True)
    assert digits.classes == ["9", "10"]  # in order of the numbers, not of their letters
    assert digits.arrays["y"].tolist() == [1, 0, 1]
    assert "target kind, 2 classes: x=float32[3, 1], y=int32[3])" in repr(table)


def test_classes_decode_to_names_and_probabilities(write):
    table = data.CSV(write("x,kind\n1,b\n2,a\n3,c\n"), "kind")
    logits = np.log(np.array([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]]))
    out = table.decode(logits, probabilities=True)
    assert out["predicted_kind"].tolist() == ["b", "a"]
    np.testing.assert_allclose(out["p(b)"], [0.7, 0.25], rtol=1e-6)
    two = data.CSV(write("x,kind\n1,no\n2,yes\n"), "kind")
    assert two.decode(np.array([[-0.1], [0.1]]))["predicted_kind"].tolist() == ["no", "yes"]
    assert two.decode(np.array([-0.1, 0.1]))["predicted_kind"].tolist() == ["no", "yes"]
    with pytest.raises(ValueError, match=r"decode: outputs float64\[2, 3\] for 2 outputs \(target kind\)"):
        two.decode(logits)
    with pytest.raises(ValueError, match=r"decode: .*target none"):
        data.CSV(write("a\n1\n2\n")).decode(np.zeros(2))


def test_codes_for_embeddings(write):
    table = data.CSV(write(HOUSES), "price", categories="codes")
    assert table.arrays["codes"].tolist() == [[1], [0], [1]]
    assert table.inputs == ["rooms"]
    only = data.CSV(write("a,b\nx,1\ny,2\n"), "b", categories="codes")
    assert sorted(only.arrays) == ["codes", "y"]


def test_a_column_without_a_name_may_be_left_out(write):
    path = write(",x,y\n0,5,1\n1,6,2\n")
    table = data.CSV(path, "y", ignore=["column_1"])
    assert table.inputs == ["x"]
    assert len(table.read(path)) == 2


def test_columns_left_out_and_columns_of_text(write):
    path = write("id,zip,x,y\n7,0150,1,2\n8,0151,2,3\n")
    table = data.CSV(path, "y", ignore=["id"], text=["zip"])
    assert table.inputs == ["zip=0150", "zip=0151", "x"]
    assert data.CSV(path, "y", ignore=0, text="zip").inputs == table.inputs
    with pytest.raises(ValueError, match=r"column 'y' is the target and ignored"):
        data.CSV(path, "y", ignore=["y"])
    with pytest.raises(ValueError, match=r"no column is left for the input"):
        data.CSV(path, "y", ignore=["id", "zip", "x"])


# Forms of files


@pytest.mark.parametrize(
    ("content", "encoding", "form"),
    [
        ("a,b\n1.5,2\n-3e2,4\n", "utf-8", {}),
        ("a;b\n1.5;2\n-300;4\n", "utf-8", {}),
        ("a\tb\r\n1.5\t2\r\n-300\t4\r\n", "utf-8", {}),
        ("a|b\n1.5|2\n\n-300|4", "utf-8", {}),
        ("a,b\n1.5,2\n-300,4\n", "utf-8-sig", {}),
        ("a    b\n1.5  2\n-300 4\n", "utf-8", {}),
        ("a,b\n1.5,2\n-300,4\n", "utf-16", {"encoding": "utf-16"}),
        ('"a", "b"\n "1.5", "2"\n-300 ,4\n', "utf-8", {}),
        ("a;b\n1,5;2\n-300;4\n", "utf-8", {"decimal": ","}),
        ('a,b\n1.5,2\n"-300",4\n', "cp1252", {"encoding": "cp1252"}),
        ("a,b\n1.5,2\n-300.,+4\n", "utf-8", {"thousands": ","}),
        ("a;b\n1,5;2\n-3.00e2;4\n", "utf-8", {"decimal": ",", "thousands": " "}),
    ],
)
def test_one_table_in_many_forms(write, content, encoding, form):
    if "-3.00e2" in content:
        content = content.replace("-3.00e2", "-300")
    table = data.CSV(write(content, encoding=encoding), "b", standardize=False, format=data.CSVFormat(**form))
    assert table.arrays["x"].tolist() == [[1.5], [-300]]
    assert table.arrays["y"].tolist() == [[2], [4]]


def test_compressed_by_gzip(write):
    assert len(data.CSV(write(gzip.compress(HOUSES.encode()), "h.csv.gz"), "price")) == 3
    with pytest.raises(ValueError, match=r"h\.csv\.gz' is damaged \("):
        data.CSV(write(gzip.compress(HOUSES.encode())[:-9], "h.csv.gz"), "price")


def test_thousands_and_quoted_cells_with_lines_in_them(write):
    path = write('who,sum\n"A, the\nfirst","1,234.5"\n"B ""b""","12,345,678"\nC,9\n')
    table = data.CSV(path, "sum", format=data.CSVFormat(thousands=","))
    assert table.arrays["y"][:, 0].tolist() == [1234.5, 12345678, 9]
    assert table.inputs == ["who=A, the\nfirst", 'who=B "b"', "who=C"]
    assert table.lines.tolist() == [2, 4, 5]


def test_a_file_without_names(write):
    path = write("5.1,3.5,setosa\n4.0,3.0,virginica\n4.5,3.2,setosa\n")
    table = data.CSV(path, -1)
    assert (table.inputs, table.targets) == (["column_1", "column_2"], ["column_3"])
    with pytest.raises(ValueError, match=r"no column 'species' for target\. .*The first line was taken for a row"):
        data.CSV(path, "species")
    # A row of texts is taken for names unless one says that it is none.
    path = write("red,yes\nblue,no\nred,yes\n")
    assert len(data.CSV(path, 1, format=data.CSVFormat(header=False))) == 3
    assert data.CSV(path, 1).targets == ["yes"]
    years = write("2019,2020\n1,2\n3,4\n")
    assert data.CSV(years, "2020", format=data.CSVFormat(header=True)).inputs == ["2019"]


# Missing values


HOLES = "age,town,y\n10,Oslo,1\n,Oslo,2\nNA,?,3\n20,Rome,4\n"


def test_missing_values_are_refused_by_default_all_at_once(write):
    said = (
        r"^data\.CSV: '.*t\.csv': 3 values are missing in 2 columns \('age' 2; 'town' 1\): "
        r"line 3, column 'age': ''; line 4, column 'age': "
        r"'NA'; line 4, column 'town': '\?'\. Tried: a value in every cell\. Fill them; or pass missing='mean'"
    )
    with pytest.raises(ValueError, match=said):
        data.CSV(write(HOLES), "y")


def test_missing_values_become_the_mean_or_a_number_and_a_category(write):
    table = data.CSV(write(HOLES), "y", missing="mean")
    assert table.inputs == ["age", "town=Oslo", "town=Rome", "town=(missing)"]
    np.testing.assert_allclose(table.arrays["x"][:, 0], [-1, 0, 0, 1], atol=1e-6)
    assert table.arrays["x"][2, 1:].tolist() == [0, 0, 1]
    table = data.CSV(write(HOLES), "y", missing=-1, standardize=False)
    assert table.arrays["x"][:, 0].tolist() == [10, -1, -1, 20]


def test_a_missing_target_is_always_refused(write):
    with pytest.raises(ValueError, match=r"1 value is missing: line 3, column 'y': 'nan'\. .*Take these rows out"):
        data.CSV(write("x,y\n1,2\n3,nan\n"), "y", missing="mean")


def test_what_stands_for_a_hole_can_be_said(write):
    path = write("x,y\n1,2\n-,3\n")
    with pytest.raises(ValueError, match=r"1 column mixes numbers and texts: 'x' \(1 number, 1 text\)"):
        data.CSV(path, "y")
    form = data.CSVFormat(holes=("-",))
    assert data.CSV(path, "y", missing=5, standardize=False, format=form).arrays["x"].tolist() == [[1], [5]]


# Statistics, parts, other files


def big(n=50):
    draw = np.random.default_rng(0)
    rows = [f"{draw.normal(5, 3):.4f},{'abc'[i % 3]},{draw.normal():.4f}" for i in range(n)]
    return "x,kind,y\n" + "\n".join(rows) + "\n"


def test_statistics_come_from_the_first_part_alone(write):
    whole = data.CSV(write(big()), "y", standardize=False)
    raw = whole.arrays["x"][:, 0].astype(np.float64)
    first, second = data.CSV(write(big()), "y", standardize_target=True).split(0.8, seed=3)
    assert (len(first), len(second)) == (40, 10)
    assert sorted([*first.lines, *second.lines]) == list(range(2, 52))
    mean, std = raw[first.lines - 2].mean(), raw[first.lines - 2].std()
    for part in (first, second):
        np.testing.assert_allclose(part.arrays["x"][:, 0], (raw[part.lines - 2] - mean) / std, atol=1e-5)
        back = part.decode(part.arrays["y"])["predicted_y"]
        np.testing.assert_allclose(back, whole.arrays["y"][part.lines - 2, 0], atol=1e-5)
    again = data.CSV(write(big()), "y").split(0.8, seed=3)[0]
    assert again.lines.tolist() == first.lines.tolist()
    assert data.CSV(write(big()), "y").split(0.8)[0].lines.tolist() != first.lines.tolist()
    whole = data.CSV(write(big()), "y")
    with pytest.raises(ValueError, match=r"split: fraction 0\.001 of 50 rows gives 0 and 50"):
        whole.split(0.001)


def test_the_mean_of_a_hole_comes_from_the_first_part_alone(write):
    rows = [str(i * i) for i in range(20)]
    rows[4] = rows[13] = ""
    first, second = data.CSV(write("x,y\n" + "".join(f"{r},1\n" for r in rows)), "y", missing="mean").split(0.5)
    for part in (first, second):
        for i in np.flatnonzero(np.isin(part.lines, [6, 15])):
            np.testing.assert_allclose(part.arrays["x"][i], 0, atol=1e-7)
    there = [float(rows[line - 2]) for line in first.lines if rows[line - 2]]
    expected = (float(rows[second.lines[0] - 2] or np.mean(there)) - np.mean(there)) / np.std(there)
    np.testing.assert_allclose(second.arrays["x"][0, 0], expected, rtol=1e-5, atol=1e-6)


def test_another_file_is_read_by_the_same_columns_in_any_order(write):
    table = data.CSV(write(HOUSES), "price")
    new = table.read(write("more,town,rooms\nx,Oslo,5\ny,Bergen,3\n", "new.csv"))
    assert sorted(new.arrays) == ["x"]
    np.testing.assert_allclose(new.arrays["x"], table.arrays["x"][[2, 0]] * [1, 0, 0] + [[0, 0, 1], [0, 1, 0]])
    assert sorted(table.read(write("price,town,rooms\n,Oslo,5\n,Oslo,3\n", "new.csv")).arrays) == ["x"]
    full = table.read(write("price,town,rooms\n7,Oslo,5\n", "new.csv"))
    assert full.arrays["y"].tolist() == [[7]]


def test_another_file_without_names_may_lack_the_target(write):
    table = data.CSV(write("1,a,5\n2,b,6\n"), 1)
    assert sorted(table.read(write("1,a,5\n", "new.csv")).arrays) == ["x", "y"]
    new = table.read(write("1,5\n2,6\n", "new.csv"))
    np.testing.assert_array_equal(new.arrays["x"], table.arrays["x"])
    with pytest.raises(
        ValueError, match=r"2 input columns are not there: 'column_1'; 'column_3'\. Tried: the 1 column"
    ):
        table.read(write("1\n2\n", "new.csv"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("twon,rooms\nOslo,4\n", r"1 input column is not there: 'town'\. .*Did you mean 'twon'\?"),
        ("town,rooms\nOslo,four\nOslo,inf\n", r"2 values are no finite number: line 2, column 'rooms': 'four'; line 3"),
        (
            "town,rooms\nParis,4\nOslo,1\nNice,2\n",
            r"2 texts are new: line 2, column 'town': 'Paris'; line 4, .*'zeros'",
        ),
        (
            "town,rooms\nOslo,\n",
            r"1 value is missing: line 2, column 'rooms': ''.*read the first file with missing='me",
        ),
        (
            "town,rooms,price\nOslo,1,\nOslo,2,3\n",
            r"1 value is missing: line 2, column 'price': ''.*whole column empty",
        ),
        ("town,rooms,price\nOslo,1,x\nOslo,2,3\n", r"1 value is no finite number: line 2, column 'price': 'x'"),
        ("", r"new\.csv' is empty"),
    ],
)
def test_what_another_file_is_refused_for(write, content, message):
    with pytest.raises(ValueError, match=r"^data\.CSV: '.*new\.csv'.*" + message.removeprefix(r"new\.csv'")):
        data.CSV(write(HOUSES), "price").read(write(content, "new.csv"))


def test_texts_that_were_never_seen_may_have_no_category(write):
    table = data.CSV(write(HOUSES), "price")
    new = table.read(write("town,rooms\nParis,4\n", "new.csv"), unseen="zeros")
    np.testing.assert_allclose(new.arrays["x"], 0, atol=1e-6)
    kinds = data.CSV(write("x,kind\n1,b\n2,a\n"), "kind")
    with pytest.raises(ValueError, match=r"1 text is new: line 2, column 'kind': 'c'"):
        kinds.read(write("x,kind\n1,c\n", "new.csv"), unseen="zeros")  # a class cannot be new
    with pytest.raises(ValueError, match=r"unseen is 'zeros'\. Tried: 'error' and, for one_hot"):
        data.CSV(write(HOUSES), "price", categories="codes").read(write(HOUSES, "new.csv"), unseen="zeros")


# What is refused


LONG = "x" * 500
REFUSED = {
    "target": (
        HOUSES,
        {"target": "prise"},
        r"no column 'prise' for target\. .*Did you mean 'price'\? Give one of these",
    ),
    "target by number": (HOUSES, {"target": 3}, r"target=3, but there are 3 columns.*Give 0 to 2, or -1"),
    "ignore": (HOUSES, {"ignore": ["towns"]}, r"no column 'towns' for ignore.*Did you mean 'town'"),
    "text": (HOUSES, {"text": ["Town"]}, r"no column 'Town' for text.*Did you mean 'town'"),
    "empty": ("", {}, r"is empty\. Tried: reading 0 characters"),
    "blank": ("\n \n\n", {}, r"is empty"),
    "names only": ("a,b\n", {"target": "b"}, r"has no rows: line 1 is all there is"),
    "ragged": (
        "a,b\n1,2\n1\n1,2,3\n4,5\n3\n9\n",
        {"target": "b"},
        r"4 rows have another number of cells than line 1, which has 2: line 3 has 1; line 4 has 3; line 6 has 1; "
        r"and 1 more\. Tried: ',' between cells",
    ),
    "twice": ("a,b,a\n1,2,3\n", {"target": "b"}, r"line 1 names columns twice: 'a' 2 times\. Tried"),
    "nameless": (
        ",b,c,\n1,2,3,\n",
        {"target": "c"},
        r"2 columns have no name on the first line: 'column_1'; 'column_4'\. .*ignore=\['column_1', 'column_4'\]",
    ),
    "title": ("My table\na,b\n1,2\n3,4\n", {"target": "b"}, r"line 2 has 2; .*If line 1 is a title or a comment, take"),
    "dates": ("a,b\n2020-01-31,2\n2020-02-01,3\n", {"target": "b"}, r"2 values are no number .*They look like dates: "),
    "mixed": (
        "a,b,c\n1,2,1\nabc,3,2\n4,x,3\n5,y,4\n",
        {"target": "c"},
        r"2 columns mix numbers and texts: 'a' \(3 numbers, 1 text\), 'b' \(2 numbers, 2 texts\): line 3, column 'a': "
        r"'abc'; line 4, column 'b': 'x'; line 5, column 'b': 'y'\. Tried: one kind a column\. Repair the texts; .*"
        r"text=\['a', 'b'\] makes them categories, ignore=\['a', 'b'\]",
    ),
    "mixed target": (
        "a,b\n1,2\n2,x\n",
        {"target": "b", "classes": False},
        r"1 column mixes .*line 3, column 'b': 'x'.*; for classes, leave classes=False out",
    ),
    "text target": ("a,b\n1,u\n2,x\n", {"target": "b", "classes": False}, r"'b' \(0 numbers, 2 texts\)"),
    "inf": (
        "a,b\n1,2\ninf,3\n-Infinity,4\n1e39,5\n",
        {"target": "b"},
        r"3 values are not finite or too large: line 3, column 'a': 'inf'; line 4, column 'a': '-Infinity'; line 5, col"
        r"umn 'a': '1e39'\. Tried: numbers of at most 3\.4e\+38",
    ),
    "thousands": (
        'a,b\n"1,234",2\n"12,345,678",3\n4,4\n',
        {"target": "b"},
        r"mixes .*: line 2, column 'a': '1,234'; line 3.*For thousands parted by ',', write format=data\."
        r"CSVFormat\(thousands=','\)",
    ),
    "all thousands": ('a,b\n"1,234",2\n"2,345",3\n', {"target": "b"}, r"2 values are no number as written.*thousands="),
    "decimal comma": (
        "a;b\n1,5;2\n2,25;3\n",
        {"target": "b"},
        r"2 values are no number.*decimal=','\); or text=\['a'\]",
    ),
    "spaces": (
        "a;b\n1 234,5;2\n3,5;3\n12;4\n",
        {"target": "b"},
        r"For thousands parted by ' ', write format=data\.CSVFormat\(decimal=',', thousands=' '\)",
    ),
    "points": ("a;b\n1.234.567;2\n1.234,5;3\n", {"target": "b"}, r"CSVFormat\(decimal=',', thousands='\.'\)"),
    "apostrophes": ("a;b\n1'234.5;2\n12'000;3\n", {"target": "b"}, r"write format=data\.CSVFormat\(thousands=\"'\"\)"),
    "currency": ("a,b\n$5,2\n$6,3\n", {"target": "b"}, r"line 2, column 'a': '\$5'.*take the signs out"),
    "percent": ("a,b\n5 %,2\n6 %,3\n", {"target": "b"}, r"They look like numbers"),
    "underscores": ("a,b\n1_000,2\n6,3\n", {"target": "b"}, r"mixes .*line 2, column 'a': '1_000'"),
    "no value": (
        "a,b,c\n,2,\nNA,3,\n",
        {"target": "b"},
        r"2 columns have no value in any of 2 rows: 'a'; 'c'\. .*ignore",
    ),
    "names of people": (
        "a,b\n" + "".join(f"Bob {i},{i}\n" for i in range(120)),
        {"target": "b"},
        r"1 column holds too many different texts .*'a' has 120 \('Bob 0', 'Bob 1', \.\.\.\)\. Tried: at most 100 in",
    ),
    "one class": ("a,b\n1,x\n2,x\n", {"target": "b"}, r"target 'b' is 'x' in every row"),
    "two classes": ("a,b,c\n1,x,1\n2,y,2\n", {"target": ["b", "c"]}, r"of 2 targets, \['b'\] are classes"),
    "latin 1": (
        "a,b\n1,2\nGötene,3\n".encode("cp1252"),
        {"target": "b"},
        r"is not utf-8: line 3 has the byte 0xf6 .*format=data\.CSVFormat\(encoding='cp1252'\)",
    ),
    "utf-16": (HOUSES.encode("utf-16"), {}, r"begins with the mark of UTF-16.*CSVFormat\(encoding='utf-16'\)"),
    "no encoding": (HOUSES, {"format": data.CSVFormat(encoding="utf-9")}, r"unknown encoding: utf-9"),
    "zero bytes": (b"a,b\n1,\0\0\n", {}, r"is no text: line 2 has a zero byte"),
    "excel": (b"PK\x03\x04 whatever", {}, r"is an Excel or ZIP file, not text.*Save it as CSV"),
    "open quote": ('a,b\n1,2\n"3,4\n5,6\n', {}, r"the row that begins on line 3 has a quote that is not closed"),
    "quote inside": (
        'a,b\n1,2\n"3"x,4\n',
        {},
        r"begins on line 3 has a quote .*Write a quote inside a quoted cell twice",
    ),
    "long": (f"a,b\n1,2\n{LONG},3\n", {"target": "b"}, r"line 3, column 'a': 'x{37}\.\.\.'"),
    "missing": (HOUSES, {"missing": "median"}, r"missing is 'median'\. Tried: 'error', 'mean' or a finite number"),
    "missing nan": (HOUSES, {"missing": float("nan")}, r"missing is nan"),
    "categories": (HOUSES, {"categories": "onehot"}, r"categories is 'onehot'"),
    "most": (HOUSES, {"most_categories": 0}, r"most_categories is 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(write, case):
    content, settings, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as error:
        data.CSV(write(content), **settings)
    said = str(error.value)
    assert said.startswith("data.CSV: ")
    assert "\n" not in said
    assert len(said) < 900
    assert "Tried: " in said


def test_files_that_are_not_there_and_not_readable(write, tmp_path):
    with pytest.raises(
        ValueError, match=r"none\.csv' cannot be read \(No such file or directory\)\. Tried: opening it"
    ):
        data.CSV(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"' is a folder\. Tried: reading it as a file"):
        data.CSV(tmp_path)
    with pytest.raises(TypeError, match=r"the path is ndarray\. .*data\.Arrays\(x, y\)"):
        data.CSV(np.zeros(3))
    with pytest.raises(TypeError, match=r"format is ';'\. Write format=data\.CSVFormat"):
        data.CSV(write(HOUSES), format=";")
    with pytest.raises(TypeError, match=r"target is True\. Tried: a column's name or position"):
        data.CSV(write(HOUSES), True)


def test_a_file_without_permission_is_told(write, monkeypatch):
    path = write(HOUSES)

    def refused(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "read_bytes", refused)
    with pytest.raises(ValueError, match=r"cannot be read \(Permission denied\)\. .*that you may read"):
        data.CSV(path)


def test_formats_that_contradict_themselves():
    with pytest.raises(ValueError, match=r"CSVFormat: delimiter is ', '"):
        data.CSVFormat(delimiter=", ")
    with pytest.raises(ValueError, match=r"CSVFormat: decimal ',', thousands ','"):
        data.CSVFormat(decimal=",", thousands=",")
    with pytest.raises(TypeError, match=r"CSVFormat: holes is the text '-'\. Give a tuple"):
        data.CSVFormat(holes="-")


# To the end: fit, predict, write


def test_trains_predicts_in_order_and_writes_beside_the_rows(write, tmp_path):
    draw = np.random.default_rng(0)
    rows = [f"{i},{x:.3f},{'ab'[i % 2]},{3 * x + 100 * (i % 2):.3f}" for i, x in enumerate(draw.normal(0, 9, 60))]
    path = write("id,x,kind,y\n" + "\n".join(rows) + "\n")
    first, second = data.CSV(path, "y", ignore=["id"], standardize_target=True).split(0.75)
    task = train.supervised(models.MLP((first.outputs,)), losses.mse, {"mae": metrics.mae})
    run = train.fit(
        task, optax.adam(0.05), first, batch_size=15, epochs=100, validation=second, validate_every=200, log=QUIET
    )
    assert train.evaluate(task, run.state, second)["loss"] < 0.01
    outputs = train.predict(task, run.state, second, batch_size=7)
    out = data.write_csv(tmp_path / "out" / "p.csv", second.decode(outputs), beside=second)
    names, *lines = [line.split(",") for line in out.read_text().splitlines()]
    assert names == ["id", "x", "kind", "y", "predicted_y"]
    assert [int(line[0]) + 2 for line in lines] == second.lines.tolist()
    assert np.abs(np.array([[float(line[3]), float(line[4])] for line in lines]) @ [1, -1]).max() < 20
    assert os.listdir(out.parent) == ["p.csv"]
    again = data.CSV(out, "predicted_y", ignore=["id"])
    np.testing.assert_array_equal(again.arrays["y"][:, 0], second.decode(outputs)["predicted_y"])


def test_arrays_of_many_kinds_are_written_exactly(tmp_path):
    values = np.array([0.1, 1 / 3, 1e-30, np.nan], np.float32)
    path = data.write_csv(tmp_path / "p.csv", {"name": ["a", "b,c", 'd"', "é"], "value": values, "n": np.arange(4)})
    table = path.read_text(encoding="utf-8").splitlines()
    assert table == ["name,value,n", "a,0.1,0", '"b,c",0.33333334,1', '"d""",1e-30,2', "é,nan,3"]
    data.write_csv(path, jax.numpy.ones((2, 3), jax.numpy.bfloat16))
    assert path.read_text() == "prediction_1,prediction_2,prediction_3\n1.0,1.0,1.0\n1.0,1.0,1.0\n"
    data.write_csv(path, np.array([[True], [False]]), delimiter=";")
    assert path.read_text() == "prediction\nTrue\nFalse\n"


def test_predictions_that_cannot_be_written(write, tmp_path):
    table = data.CSV(write(HOUSES), "price")
    three = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=r"'prediction' float32\[2\] has 2 rows; there are 3 beside it"):
        data.write_csv(tmp_path / "p.csv", three[:2], beside=table)
    with pytest.raises(ValueError, match=r"'b' float32\[2\] has 2 rows; there are 3"):
        data.write_csv(tmp_path / "p.csv", {"a": three, "b": three[:2]})
    with pytest.raises(ValueError, match=r"two columns are called 'price'.*\{'new_price': values\}"):
        data.write_csv(tmp_path / "p.csv", {"price": three}, beside=table)
    with pytest.raises(ValueError, match=r"is the file that the examples came from"):
        data.write_csv(table.path, three, beside=table)
    with pytest.raises(ValueError, match=r"'prediction' float32\[3, 1, 1\].*Give arrays \[N\] or \[N, K\]"):
        data.write_csv(tmp_path / "p.csv", three.reshape(3, 1, 1))
    with pytest.raises(ValueError, match="no columns"):
        data.write_csv(tmp_path / "p.csv", {})
    with pytest.raises(TypeError, match=r"beside is str\. .*Give a data\.CSV"):
        data.write_csv(tmp_path / "p.csv", three, beside="t.csv")
    with pytest.raises(ValueError, match=r"/t\.csv/p\.csv' cannot be written"):
        data.write_csv(table.path / "p.csv", three)
    assert sorted(os.listdir(tmp_path)) == ["t.csv"]
    table.path.write_text("rooms,town,price\n3,Oslo,100\n")
    with pytest.raises(ValueError, match=r"has changed since it was read: 2 rows are gone: line 3; line 4"):
        data.write_csv(tmp_path / "p.csv", three, beside=table)


def test_the_cases_say_different_things():
    said = [re.sub(r"\W", "", message) for _, _, message in REFUSED.values()]
    assert len(set(said)) == len(said)
