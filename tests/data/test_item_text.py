"""One cleaning for the texts of every source."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.item_text import clean


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Mug &amp; saucer &quot;Blue&quot; &#39;09", 'Mug & saucer "Blue" \'09'),
        ("<span id='t'>Rope</span><br/>10 m", "Rope 10 m"),
        ("<p>Soft</p><p>Light</p>", "Soft Light"),
        ("H<sub>2</sub>O", "H2O"),
        ("&lt;b&gt;Bold&lt;/b&gt;", "Bold"),
        ("A<!-- hidden --><script>run()</script>B", "A B"),
        ("less < more, I <3 you, size <5 cm>", "less < more, I <3 you, size <5 cm>"),
        ("a&#10;b\tc", "a b c"),
        (["Home", "-", "N/A", "Tools &amp; More"], "Home, Tools & More"),
        (19.99, "19.99"),
        ("手工陶瓷杯 350ml", "手工陶瓷杯 350ml"),
        ("NaCl", "NaCl"),
        ("unknown", "unknown"),
        ("$1,299.00 - $2,000", "$1,299.00 - $2,000"),
    ],
)
def test_tags_and_entities_go_and_the_rest_stays(value, text):
    assert clean(value) == text


@pytest.mark.parametrize(
    "value", ["-", "—", "\N{EN DASH}", "N/A", "n/a", "null", "NULL", "None", "nan", " - ", "&mdash;", "<br>", "?", "<NA>", None, []]
)
def test_a_placeholder_is_no_text(value):
    assert clean(value) == ""


@given(st.text(alphabet=st.characters(whitelist_categories=["L", "Nd"], whitelist_characters=" .,'()"), min_size=3))
def test_a_clean_text_stays_as_it_is(text):
    once = clean(text)
    assert clean(once) == once
