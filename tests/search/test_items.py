"""Which pictures, sounds and captions are one item."""

from fusemix.search.items import ItemGroups


def entry(identity, caption, group, **more):
    return {"id": identity, "caption": caption, "group": group, "title": "", "credit": "", **more}


def test_a_picture_a_sound_and_a_caption_of_one_row_are_one_item():
    groups = ItemGroups(
        {
            "image": [entry("dog", "a dog", "dog")],
            "audio": [entry("dog", "a dog", "dog")],
            "text": [entry("dog", "a dog", "dog", text="a dog")],
        }
    )
    assert groups.faces == [{"image": [0], "audio": [0], "text": [0]}]


def test_pictures_of_one_name_are_items_of_their_own_and_share_the_caption():
    pictures = [entry("a", "A dog", "dog"), entry("b", "a dog", "dog"), entry("c", "a cat", "cat")]
    groups = ItemGroups({"image": pictures, "text": [entry("a", "a dog", "dog", text="a dog")]})
    assert groups.faces == [{"image": [0], "text": [0]}, {"image": [1], "text": [0]}, {"image": [2]}]
    assert groups.items_of("text", 0) == [0, 1] and groups.items_of("text", 1) == []


def test_all_captions_of_a_photo_belong_to_it_and_not_to_another_of_its_group_with_another_title():
    photo, drawing = entry("0", "one", "g", title="Photo"), entry("9", "nine", "g", title="Drawing")
    captions = [entry(str(i), word, "g", title="Photo", text=word) for i, word in enumerate(("one", "two", "three"))]
    groups = ItemGroups({"image": [photo, drawing], "text": captions})
    assert groups.faces == [{"image": [0], "text": [0, 1, 2]}, {"image": [1]}]


def test_what_is_nobodys_is_an_item_with_one_face():
    sounds = [entry("x", "a hum", "hum"), entry("y", "a hum", "hum")]
    groups = ItemGroups({"audio": sounds, "text": [entry("t", "else", "other", text="else")]})
    assert groups.faces == [{"audio": [0]}, {"audio": [1]}, {"text": [0]}]


def test_the_only_picture_and_the_only_sound_of_a_group_are_one_item_though_their_rows_differ():
    image, sound = [entry("1", "a dog", "g")], [entry("2", "barks", "g")]
    assert ItemGroups({"image": image, "audio": sound}).faces == [{"image": [0], "audio": [0]}]
    assert len(ItemGroups({"image": image, "audio": sound * 2})) == 3
    assert len(ItemGroups({"image": image, "audio": [entry("2", "barks", "")]})) == 2


def test_a_modality_of_the_users_own_joins_by_id():
    groups = ItemGroups({"image": [entry("1", "a", "g")], "depth": [entry("1", "a", "g"), entry("2", "b", "h")]})
    assert groups.faces == [{"image": [0], "depth": [0]}, {"depth": [1]}]
