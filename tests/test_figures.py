"""Pictures: what was given is what is drawn, on a page too; shapes that do not fit are refused."""

import io
import itertools

import numpy as np
import pytest

from jaxnn import figures, report


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in (*axes.texts, axes.title)]


def test_points_and_lines():
    x, y = np.arange(5.0)[:, None], np.arange(5.0)[::-1]
    figure = figures.points(x, y, {"a": ([0, 4], [[4], [0]]), "b": ([0, 1], [0, 1])}, "Title", "x", "y")
    (axes,) = figure.axes
    np.testing.assert_array_equal(axes.collections[0].get_offsets(), np.stack([x[:, 0], y], 1))
    assert [line.get_ydata().tolist() for line in axes.lines] == [[4, 0], [0, 1]]
    assert "Title" in report.Page("page").figure(figure).html()


@pytest.mark.parametrize(
    "figure", [figures.points([0, 1], [1, 0]), figures.matrix(np.eye(2)), figures.images(np.zeros((2, 3, 3)))], ids=str
)
def test_a_notebook_shows_it_on_white(figure):
    import matplotlib.image

    png = figure._repr_png_()  # what a cell whose value it is asks for, whether or not pyplot was imported
    pixels = matplotlib.image.imread(io.BytesIO(png), format="png")
    np.testing.assert_array_equal(pixels[0, 0], 1)  # white, opaque


def test_a_matrix_shows_its_counts_and_no_zeros():
    figure = figures.matrix([[3, 1], [0, 1000]], names=["cat", "dog"])
    axes = figure.axes[0]
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    assert shown == {(0, 0): "3", (1, 0): "1", (1, 1): "1000"}  # (column, row)
    np.testing.assert_allclose(axes.images[0].get_array().filled(-1), [[0.75, 0.25], [-1, 1]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]


def test_images_with_captions_in_a_grid():
    pictures = np.linspace(0, 1, 3 * 4 * 5).reshape(3, 4, 5)
    figure = figures.images(pictures, ["a", "b", "$c"], "Title", columns=2)
    assert len(figure.axes) == 4
    assert texts(figure) == ["a", "b", "$c", ""]
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), pictures[1])
    many = figures.images(np.zeros((100, 2, 2, 3), np.uint8))
    assert sum(bool(axes.images) for axes in many.axes) == 64
    assert "data:image/png" in report.Page("page").figure(figure).html()


def test_captions_stay_in_their_columns_and_off_the_pictures():
    captions = ["ankle boot, not sneaker", "AUTOMOBILE, not TRUCK", "a", "", "trouser " * 20, "shirt"] * 2
    figure = figures.images(np.zeros((12, 4, 4)), captions, "Held out", columns=6)
    figure.savefig(io.BytesIO())  # which lays it out
    titles = [axes.title.get_window_extent() for axes in figure.axes]
    pictures = [axes.get_window_extent() for axes in figure.axes]
    for row in (titles[:6], titles[6:]):
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(row) if left.width and right.width)
    assert not any(title.overlaps(picture) for title in titles if title.width for picture in pictures)
    assert texts(figure)[0] == "ankle boot, not\nsneaker"
    assert texts(figure)[4].endswith(" …")


@pytest.mark.parametrize(
    "call",
    [
        lambda: figures.points([1, 2], [1, 2, 3]),
        lambda: figures.points(np.zeros((2, 2)), np.zeros(4)),
        lambda: figures.matrix(np.zeros((2, 3))),
        lambda: figures.matrix(np.zeros((2, 2)), names=["a"]),
        lambda: figures.images(np.zeros((2, 3))),
        lambda: figures.images(np.zeros((2, 3, 3, 2))),
        lambda: figures.images(np.zeros((2, 3, 3)), ["a"]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call):
    with pytest.raises(ValueError, match=r"^figures\.\w+: .*Tried: .*(Give|Write)"):
        call()


def test_an_attention_map_has_a_row_a_query_and_a_column_a_key():
    weights = np.array([[0.1, 0.9, 0.0], [0.5, 0.25, 0.25]])
    axes = figures.attention(weights, ["a", "$b", "c"], ["x", "y"], "map").axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), weights)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["x", "y"]
    assert len(axes.get_xticklabels()) == 3
    with pytest.raises(ValueError, match="2 queries and 2 keys"):
        figures.attention(weights, ["a", "b"], ["x", "y"])
