//! Ejection, return and forgetting.

use proptest::prelude::*;

use super::*;

const MIDDLE: u32 = u32::MAX / 2;

fn settings() -> TrafficSettings {
    TrafficSettings::default()
}

/// Fails so often that the endpoint would be ejected; what the last failure said.
fn fail(ejection: &mut Ejection<u8>, now: Mono, key: u8, size: usize) -> Option<Duration> {
    let times = settings().ejection_failures;
    let said = (0..times).map(|_| ejection.failed(now, &key, size, &settings(), MIDDLE));
    said.last().flatten()
}

/// To the millisecond: the middle draw is half a unit of 2^32 below the middle.
fn about(said: Option<Duration>) -> Option<u64> {
    said.map(|said| u64::try_from((said.as_micros() + 500) / 1000).unwrap())
}

#[test]
fn five_failures_in_a_row_eject_for_a_second() {
    let mut ejection = Ejection::new();
    let now = Mono::from_millis(7);
    for _ in 0..4 {
        assert_eq!(ejection.failed(now, &1, 10, &settings(), MIDDLE), None);
        assert!(!ejection.is_ejected(now, &1));
    }
    assert_eq!(about(ejection.failed(now, &1, 10, &settings(), MIDDLE)), Some(1000));
    assert!(ejection.is_ejected(now, &1));
    assert!(!ejection.is_ejected(now, &2));
    assert_eq!(ejection.count(now), 1);
}

#[test]
fn a_success_between_failures_begins_the_count_anew() {
    let mut ejection = Ejection::new();
    for _ in 0..4 {
        ejection.failed(Mono::ZERO, &1, 10, &settings(), MIDDLE);
    }
    ejection.succeeded(&1);
    for _ in 0..4 {
        assert_eq!(ejection.failed(Mono::ZERO, &1, 10, &settings(), MIDDLE), None);
    }
}

#[test]
fn an_endpoint_returns_when_its_time_is_over() {
    let mut ejection = Ejection::new();
    let length = fail(&mut ejection, Mono::ZERO, 1, 10).unwrap();
    assert!(ejection.is_ejected(Mono::ZERO + length - Duration::from_nanos(1), &1));
    assert!(!ejection.is_ejected(Mono::ZERO + length, &1));
    assert_eq!(ejection.count(Mono::ZERO + length), 0);
}

#[test]
fn each_further_ejection_lasts_twice_as_long_up_to_the_cap() {
    let mut ejection = Ejection::new();
    let mut now = Mono::ZERO;
    let mut lengths = Vec::new();
    for _ in 0..8 {
        let length = fail(&mut ejection, now, 1, 10);
        lengths.extend(about(length));
        now = now + length.unwrap();
    }
    assert_eq!(lengths, [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]);
    ejection.succeeded(&1);
    assert_eq!(about(fail(&mut ejection, now, 1, 10)), Some(1000), "a success forgets all of it");
}

#[test]
fn failures_while_ejected_count_for_nothing() {
    let mut ejection = Ejection::new();
    let length = fail(&mut ejection, Mono::ZERO, 1, 10).unwrap();
    for _ in 0..20 {
        assert_eq!(ejection.failed(Mono::from_millis(500), &1, 10, &settings(), MIDDLE), None);
    }
    let back = Mono::ZERO + length;
    assert!(!ejection.is_ejected(back, &1));
    assert_eq!(ejection.failed(back, &1, 10, &settings(), MIDDLE), None);
}

#[test]
fn never_more_than_half_of_a_service_is_ejected() {
    for (size, most) in [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2)] {
        let mut ejection = Ejection::new();
        for key in 0..u8::try_from(size).unwrap() {
            fail(&mut ejection, Mono::ZERO, key, size);
        }
        assert_eq!(ejection.count(Mono::ZERO), most, "of {size}");
    }
}

#[test]
fn an_endpoint_that_had_to_stay_is_ejected_as_soon_as_there_is_room() {
    let mut ejection = Ejection::new();
    let length = fail(&mut ejection, Mono::ZERO, 1, 2).unwrap();
    assert_eq!(fail(&mut ejection, Mono::ZERO, 2, 2), None);
    let later = Mono::ZERO + length;
    assert!(ejection.failed(later, &2, 2, &settings(), MIDDLE).is_some());
}

#[test]
fn an_endpoint_that_is_no_more_makes_room() {
    let mut ejection = Ejection::new();
    fail(&mut ejection, Mono::ZERO, 1, 2);
    ejection.retain(|key| *key != 1);
    assert_eq!(ejection.count(Mono::ZERO), 0);
    assert!(fail(&mut ejection, Mono::ZERO, 2, 2).is_some());
}

#[test]
fn what_failed_long_ago_is_forgotten() {
    let mut ejection = Ejection::new();
    for _ in 0..4 {
        ejection.failed(Mono::ZERO, &1, 10, &settings(), MIDDLE);
    }
    assert_eq!(ejection.failed(Mono::from_millis(60_000), &1, 10, &settings(), MIDDLE), None);
    ejection.failed(Mono::from_millis(120_000), &2, 10, &settings(), MIDDLE);
    assert_eq!(ejection.endpoints.len(), 1);
}

#[test]
fn zero_failures_mean_never() {
    let settings = TrafficSettings { ejection_failures: 0, ..settings() };
    let mut ejection = Ejection::new();
    for _ in 0..100 {
        assert_eq!(ejection.failed(Mono::ZERO, &1, 10, &settings, MIDDLE), None);
    }
}

#[test]
fn lengths_are_drawn_a_tenth_up_and_down_and_never_pass_the_cap() {
    let bounds = |base_ms| {
        let settings = TrafficSettings {
            ejection_failures: 1,
            ejection_base: Duration::from_millis(base_ms),
            ..settings()
        };
        [0, u32::MAX].map(|draw| {
            let mut ejection = Ejection::new();
            ejection.failed(Mono::ZERO, &1, 10, &settings, draw).unwrap().as_millis()
        })
    };
    assert_eq!(bounds(1000), [900, 1100]);
    assert_eq!(bounds(90_000), [54_000, 60_000]);
}

/// What a worker may tell it.
#[derive(Clone, Debug)]
enum Told {
    Failed { key: u8, draw: u32 },
    Succeeded(u8),
    Waited(u64),
}

fn told() -> impl Strategy<Value = Told> {
    prop_oneof![
        8 => (0_u8..6, any::<u32>()).prop_map(|(key, draw)| Told::Failed { key, draw }),
        1 => (0_u8..6).prop_map(Told::Succeeded),
        2 => (0_u64..3000).prop_map(Told::Waited),
        1 => (0_u64..200_000).prop_map(Told::Waited),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_half_stay_and_all_return(history in prop::collection::vec(told(), 0..300), failures in 1_u32..6) {
        let settings = TrafficSettings { ejection_failures: failures, ..settings() };
        let size = 6;
        let mut ejection = Ejection::new();
        let mut in_a_row = [0_u32; 6];
        let mut now = Mono::ZERO;
        for told in history {
            match told {
                Told::Failed { key, draw } => {
                    let was_ejected = ejection.is_ejected(now, &key);
                    let said = ejection.failed(now, &key, size, &settings, draw);
                    in_a_row[usize::from(key)] += u32::from(!was_ejected);
                    if let Some(length) = said {
                        prop_assert!(!was_ejected);
                        prop_assert!(in_a_row[usize::from(key)] >= failures);
                        prop_assert!(length >= Duration::from_millis(900) && length <= settings.ejection_cap);
                        prop_assert!(ejection.is_ejected(now, &key));
                        in_a_row[usize::from(key)] = 0;
                    }
                }
                Told::Succeeded(key) => {
                    ejection.succeeded(&key);
                    prop_assert!(!ejection.is_ejected(now, &key));
                    in_a_row[usize::from(key)] = 0;
                }
                Told::Waited(ms) => now = now + Duration::from_millis(ms),
            }
            prop_assert!(ejection.count(now) <= size / 2);
            prop_assert!(ejection.endpoints.len() <= size);
        }
        prop_assert_eq!(ejection.count(now + settings.ejection_cap), 0);
    }
}
