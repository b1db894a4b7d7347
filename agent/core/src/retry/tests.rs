//! The table line by line, the delays, and the budget's bounds for every prefix and window of random histories.

use proptest::prelude::*;

use super::*;

fn workers(count: u32) -> NonZeroU32 {
    NonZeroU32::new(count).unwrap()
}

fn budget() -> Budget {
    Budget::new(&TrafficSettings::default(), workers(1))
}

fn fresh() -> Attempts {
    Attempts::new(&TrafficSettings::default())
}

/// What is said in all four situations: (by service, another exists).
fn always(failure: Failure, attempts: &Attempts, expected: Next) {
    for (by_service, another_exists) in [(false, false), (false, true), (true, false), (true, true)] {
        let said = next(failure, attempts, by_service, another_exists);
        assert_eq!(said, expected, "{failure:?} {by_service} {another_exists}");
    }
}

#[test]
fn a_dead_tunnel_goaway_or_refused_stream_is_retried_at_once_once() {
    for failure in [Failure::TunnelDead, Failure::GoAway, Failure::RefusedStream] {
        let mut attempts = fresh();
        always(failure, &attempts, Next::AtOnce);
        attempts.record(Next::AtOnce);
        assert_eq!(attempts.retries, 0, "it is free of budget");
        always(failure, &attempts, Next::Another);
    }
}

#[test]
fn a_pod_that_has_gone_is_left_at_once_for_another_endpoint() {
    for by_service in [false, true] {
        assert_eq!(next(Failure::PodGone, &fresh(), by_service, true), Next::AtOnce);
        assert_eq!(next(Failure::PodGone, &fresh(), by_service, false), Next::Give);
    }
}

#[test]
fn a_peer_that_cannot_be_reached_is_retried_as_often_as_the_settings_say() {
    for failure in [Failure::Refused, Failure::Unreachable, Failure::Timeout, Failure::TlsCut] {
        let mut attempts = fresh();
        for _ in 0..attempts.retries_max {
            always(failure, &attempts, Next::Another);
            attempts.record(Next::Another);
        }
        always(failure, &attempts, Next::Give);
    }
}

#[test]
fn an_app_that_refused_is_retried_only_at_another_endpoint_of_a_service() {
    let app = Failure::AppUnreachable503;
    assert_eq!(next(app, &fresh(), true, true), Next::Another);
    assert_eq!(next(app, &fresh(), true, false), Next::Give);
    assert_eq!(next(app, &fresh(), false, true), Next::Give);
    assert_eq!(next(app, &fresh(), false, false), Next::Give);
}

#[test]
fn not_this_pod_is_retried_once_after_a_look_up() {
    let mut attempts = fresh();
    always(Failure::NotThisPod400, &attempts, Next::SameAfterLookup);
    attempts.record(Next::SameAfterLookup);
    always(Failure::NotThisPod400, &attempts, Next::Give);
    always(Failure::Refused, &attempts, Next::Another);
}

#[test]
fn what_is_a_matter_of_security_is_never_retried() {
    for failure in [Failure::Identity, Failure::Certificate, Failure::Denied, Failure::Protocol] {
        always(failure, &fresh(), Next::Give);
    }
}

#[test]
fn no_history_leads_to_more_retries_than_the_settings_allow() {
    let failures =
        [Failure::TunnelDead, Failure::Refused, Failure::NotThisPod400, Failure::AppUnreachable503];
    for first in failures {
        for second in failures {
            let mut attempts = fresh();
            let (mut free, mut paid) = (0, 0);
            for turn in 0..100 {
                let failure = if turn % 2 == 0 { first } else { second };
                let said = next(failure, &attempts, true, true);
                attempts.record(said);
                match said {
                    Next::AtOnce => free += 1,
                    Next::Another | Next::SameAfterLookup => paid += 1,
                    Next::Give => break,
                }
            }
            assert!(free <= 1 && paid <= 2, "{first:?} {second:?}: {free} {paid}");
        }
    }
}

#[test]
fn a_delay_is_drawn_from_zero_to_a_doubling_end_with_a_cap() {
    let settings = TrafficSettings { retries_max: 40, ..TrafficSettings::default() };
    let backoff = Backoff::new(&settings);
    let longest = [25, 50, 100, 200, 250, 250];
    for (retry, ms) in (0..).zip(longest) {
        assert_eq!(backoff.delay(retry, 0), Some(Duration::ZERO));
        assert_eq!(backoff.delay(retry, u32::MAX), Some(Duration::from_millis(ms)));
    }
    assert_eq!(backoff.delay(39, u32::MAX), Some(Duration::from_millis(250)), "2^39 overflows no more");
    let half = backoff.delay(0, u32::MAX / 2).unwrap();
    assert!((12..=13).contains(&half.as_millis()), "{half:?}");
    assert_eq!(backoff.delay(40, 0), None);
    assert_eq!(Backoff::new(&TrafficSettings::default()).delay(2, 0), None);
}

#[test]
fn the_floor_gives_one_retry_each_100_ms_and_saves_none_up() {
    let mut budget = budget();
    assert!(budget.withdraw(Mono::from_millis(0)));
    assert!(!budget.withdraw(Mono::from_millis(99)));
    assert!(budget.withdraw(Mono::from_millis(100)));
    // After an hour of rest: one, not thousands.
    assert!(budget.withdraw(Mono::from_millis(3_600_000)));
    assert!(!budget.withdraw(Mono::from_millis(3_600_000)));
}

#[test]
fn the_floor_pays_first_and_what_is_earned_is_kept() {
    let mut budget = budget();
    for _ in 0..10 {
        budget.attempt(Mono::ZERO);
    }
    assert!(budget.withdraw(Mono::ZERO));
    let later = Mono(Duration::from_millis(100));
    assert!(
        budget.withdraw(later) && budget.withdraw(later),
        "the floor's next, and the one that was earned"
    );
}

fn without_floor() -> TrafficSettings {
    TrafficSettings { budget_floor_interval: None, ..TrafficSettings::default() }
}

#[test]
fn ten_first_attempts_earn_one_retry() {
    let mut budget = Budget::new(&without_floor(), workers(1));
    let now = Mono::from_millis(500);
    for _ in 0..9 {
        budget.attempt(now);
    }
    assert!(!budget.withdraw(now));
    budget.attempt(now);
    assert!(budget.withdraw(now));
    assert!(!budget.withdraw(now));
}

#[test]
fn a_retry_that_is_not_earned_to_the_last_hundredth_is_not_given() {
    let settings = TrafficSettings { budget_percent: 33, ..without_floor() };
    let mut budget = Budget::new(&settings, workers(1));
    for _ in 0..3 {
        budget.attempt(Mono::ZERO);
    }
    assert!(!budget.withdraw(Mono::ZERO));
    budget.attempt(Mono::ZERO);
    assert!(budget.withdraw(Mono::ZERO));
}

#[test]
fn an_earned_retry_lasts_ten_seconds_and_less_than_eleven() {
    for (made, asked, lasts) in
        [(999, 10_999, true), (999, 11_000, false), (0, 10_999, true), (0, 11_000, false)]
    {
        let mut budget = Budget::new(&without_floor(), workers(1));
        for _ in 0..10 {
            budget.attempt(Mono::from_millis(made));
        }
        assert_eq!(budget.withdraw(Mono::from_millis(asked)), lasts, "{made} {asked}");
    }
}

#[test]
fn parts_of_retries_add_up_over_slots_and_the_oldest_are_spent_first() {
    let mut budget = Budget::new(&without_floor(), workers(1));
    for second in 0..=10 {
        budget.attempt(Mono::from_millis(second * 1000));
        budget.attempt(Mono::from_millis(second * 1000));
    }
    // 22 tenths; spending the first ten leaves the twelve that are youngest.
    assert!(budget.withdraw(Mono::from_millis(10_000)));
    assert!(budget.withdraw(Mono::from_millis(15_000)));
    assert!(!budget.withdraw(Mono::from_millis(15_000)));
}

#[test]
fn settings_change_what_is_earned_from_now_on() {
    let mut budget = Budget::new(&without_floor(), workers(1));
    let now = Mono::ZERO;
    for _ in 0..10 {
        budget.attempt(now);
    }
    budget.update(&TrafficSettings { budget_percent: 0, ..without_floor() });
    budget.attempt(now);
    assert!(budget.withdraw(now), "what was earned stays");
    assert!(!budget.withdraw(now));
    budget.update(&TrafficSettings {
        budget_percent: 100,
        budget_interval: Duration::ZERO,
        ..without_floor()
    });
    budget.attempt(now);
    assert!(budget.withdraw(now), "an interval of nothing is taken as the shortest slots");
    assert!(!budget.withdraw(now));
}

#[test]
fn each_of_n_workers_gets_an_nth_of_the_floor() {
    for count in [1_u64, 2, 4, 7] {
        let mut all: Vec<_> = (0..count)
            .map(|_| Budget::new(&TrafficSettings::default(), workers(u32::try_from(count).unwrap())))
            .collect();
        let mut granted = 0;
        // Just under 70 s, which all of these divide.
        for ms in 0..70_000 {
            for budget in &mut all {
                granted += u64::from(budget.withdraw(Mono::from_millis(ms)));
            }
        }
        assert_eq!(granted, 700, "{count} workers");
    }
}

#[test]
fn deposits_take_bounded_memory() {
    let mut budget = Budget::new(&without_floor(), workers(1));
    for ms in 0..200_000 {
        budget.attempt(Mono::from_millis(ms));
        assert!(budget.deposits.len() <= 11);
    }
}

/// What happened, and when.
#[derive(Clone, Copy, Debug)]
enum Event {
    Attempt,
    Withdraw,
}

/// Bursts of attempts and of retries wanted, with pauses that like the edges of slots and intervals.
fn history() -> impl Strategy<Value = Vec<(u64, Event)>> {
    let pause = prop_oneof![
        6 => Just(0_u64),
        4 => 0_u64..120,
        2 => prop::sample::select(vec![99, 100, 101, 999, 1000, 1001]),
        1 => prop::sample::select(vec![9_999, 10_000, 10_001, 10_999, 11_000, 21_000]),
        1 => 0_u64..25_000,
    ];
    let burst = (pause, any::<bool>(), 1_usize..40);
    prop::collection::vec(burst, 0..80).prop_map(|bursts| {
        let mut at = 0;
        let mut history = Vec::new();
        for (pause, attempt, count) in bursts {
            at += pause;
            let event = if attempt { Event::Attempt } else { Event::Withdraw };
            history.extend(std::iter::repeat_n((at, event), count));
        }
        history
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// DESIGN, section 9, to the letter: both bounds, for every prefix and for every window of every history.
    #[test]
    fn retries_stay_within_the_budget(history in history()) {
        let mut budget = budget();
        let (mut attempts, mut retries): (Vec<u64>, Vec<u64>) = (vec![], vec![]);
        for (at, event) in history {
            match event {
                Event::Attempt => {
                    budget.attempt(Mono::from_millis(at));
                    attempts.push(at);
                }
                Event::Withdraw => {
                    if budget.withdraw(Mono::from_millis(at)) {
                        retries.push(at);
                    }
                }
            }
            // In thousandths: retries ≤ 0.1 · attempts + 10 · seconds + 1.
            let allowed = 100 * attempts.len() as u64 + 10 * at + 1000;
            prop_assert!(1000 * retries.len() as u64 <= allowed, "{} at {at} ms", retries.len());
            // The window that ends now; those that end between events hold no more.
            let since = |events: &[u64], span: u64| {
                let from = at.saturating_sub(span);
                events.iter().rev().take_while(|event| **event >= from).count() as u64
            };
            let allowed = since(&attempts, 21_000) + 10 * 101;
            prop_assert!(10 * since(&retries, 10_000) <= allowed, "window that ends at {at} ms");
        }
    }

    /// Not only bounded: what was earned and has not expired is granted.
    #[test]
    fn an_earned_retry_is_granted(attempts in 10_usize..500, after in 0_u64..10_000) {
        let mut budget = Budget::new(&without_floor(), workers(1));
        for _ in 0..attempts {
            budget.attempt(Mono::from_millis(0));
        }
        let granted = std::iter::repeat_with(|| budget.withdraw(Mono::from_millis(after))).take_while(|got| *got).count();
        prop_assert_eq!(granted, attempts / 10);
    }
}
