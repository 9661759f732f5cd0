from lib.policies.memory import parked


class Model:
    """What `parked` sees of a model on a device."""

    def __init__(self, device):
        self.device, self.places = device, []

    def to(self, place):
        self.places.append(place)


def test_parked_models_leave_their_device_and_come_back_whatever_happens():
    first, second = Model("cuda:0"), Model("cuda:1")
    try:
        with parked(first, second):
            assert first.places == second.places == ["cpu"]
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert first.places == ["cpu", "cuda:0"] and second.places == ["cpu", "cuda:1"]
