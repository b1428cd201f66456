import pytest

from voxelquant.recipes import doctor


def finding(subject: str) -> doctor.Finding:
    return next(f for f in doctor.examine_machine() if f.subject == subject)


def test_a_missing_devkit_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "package_version", lambda name: None)
    assert not finding("nuscenes-devkit").fine
    assert finding("nuscenes-devkit").advice == "pip install 'voxelquant[nuscenes]'"
    assert finding("pictures").found == "no matplotlib"


def test_an_old_devkit_is_not_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "package_version", lambda name: "1.1.9")
    assert finding("nuscenes-devkit").found == "1.1.9, need 1.2"
    assert not finding("nuscenes-devkit").fine


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ROOM_FOR_A_RUN_GIB", 1e9)
    assert not finding("disk").fine


def test_unsupported_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "version_info", (3, 13, 1, "final", 0))
    assert not finding("python").fine
    assert finding("python").found == "3.13.1"
