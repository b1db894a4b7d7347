//! The machine under virtual time, with a CA that comes and goes and a wall clock that steps.

use std::time::UNIX_EPOCH;

use proptest::prelude::*;

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn id(name: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{name}").parse().unwrap()
}

fn web() -> SpiffeId {
    id("web")
}

fn start() -> Now {
    Now::at_start(UNIX_EPOCH + Duration::from_secs(1_800_000_000))
}

fn rotation() -> Rotation {
    Rotation::new(Policy::default(), Seed(7))
}

fn issue(now: Now, life: Duration) -> Issue {
    let validity = Validity { not_before: now.wall - Duration::from_secs(300), not_after: now.wall + life };
    Issue { validity, at: now.wall }
}

fn issued(now: Now, id: SpiffeId, life: Duration) -> Event {
    Event::Issued { id, from: Source::Answer, issue: issue(now, life) }
}

fn failed(id: SpiffeId) -> Event {
    Event::Failed { id, kind: Failure::Unreachable }
}

/// A machine that holds a certificate of this life since `start()`.
fn holding(life: Duration) -> Rotation {
    let mut rotation = rotation();
    assert_eq!(rotation.handle(start(), Event::Need(web())), [Effect::Request(web())]);
    assert_eq!(rotation.handle(start(), issued(start(), web(), life)), [Effect::Publish(web())]);
    rotation
}

/// The wall time of the first request that ticking by deadlines makes, with both clocks in step.
fn first_request(rotation: &mut Rotation) -> Now {
    // A day has 2880 rechecks.
    for _ in 0..10_000 {
        let now = start().after(rotation.deadline().expect("a certificate is held").0);
        if rotation.tick(now).contains(&Effect::Request(web())) {
            return now;
        }
    }
    panic!("no request in the certificate's life");
}

#[test]
fn a_need_is_requested_once_however_often_it_is_said() {
    let mut rotation = rotation();
    assert_eq!(rotation.handle(start(), Event::Need(web())), [Effect::Request(web())]);
    assert_eq!(rotation.handle(start(), Event::Need(web())), []);
    assert_eq!(rotation.deadline(), None, "an answer is awaited and nothing is held");
}

#[test]
fn renewal_lies_at_half_of_life_within_a_tenth_and_is_drawn_per_certificate() {
    let mut seen = Vec::new();
    for seed in 0..200 {
        let mut rotation = Rotation::new(Policy::default(), Seed(seed));
        rotation.handle(start(), Event::Need(web()));
        rotation.handle(start(), issued(start(), web(), DAY));
        let renewed = first_request(&mut rotation).mono.0;
        assert!(renewed >= DAY.mul_f64(0.4) && renewed <= DAY.mul_f64(0.6), "{renewed:?}");
        seen.push(renewed);
    }
    seen.sort_unstable();
    assert!(seen[0] < DAY.mul_f64(0.42) && seen[199] > DAY.mul_f64(0.58), "the whole range is drawn from");
}

#[test]
fn comparing_does_not_draw_again() {
    let mut rotation = holding(DAY);
    let renew = rotation.status().next().unwrap().1.renew_at;
    for minutes in 1..600 {
        assert_eq!(rotation.tick(start().after(Duration::from_secs(60 * minutes))), []);
        assert_eq!(rotation.status().next().unwrap().1.renew_at, renew);
        if start().after(Duration::from_secs(60 * (minutes + 1))).wall >= renew.unwrap() {
            return;
        }
    }
}

#[test]
fn a_failed_renewal_keeps_the_old_certificate_to_its_expiry() {
    let mut rotation = holding(DAY);
    let mut now = first_request(&mut rotation);
    let mut expired_at = None;
    while expired_at.is_none() {
        rotation.handle(now, failed(web()));
        let mut effects = Vec::new();
        while !effects.contains(&Effect::Request(web())) {
            now = start().after(rotation.deadline().unwrap().0);
            effects = rotation.tick(now);
            if effects.contains(&Effect::Expired(web())) {
                expired_at = Some(now.mono.0);
                break;
            }
        }
    }
    let expired_at = expired_at.unwrap();
    assert!(expired_at > DAY && expired_at <= DAY + Duration::from_millis(1), "{expired_at:?}");
}

#[test]
fn retries_go_on_for_ever_within_the_cap_and_spread_over_all_of_it() {
    let mut rotation = rotation();
    let mut now = start();
    rotation.handle(now, Event::Need(web()));
    let mut delays = Vec::new();
    for _ in 0..1000 {
        rotation.handle(now, failed(web()));
        let next = start().after(rotation.deadline().unwrap().0);
        delays.push(next.mono.since(now.mono));
        now = next;
        assert_eq!(rotation.tick(now), [Effect::Request(web())]);
    }
    assert!(delays[0] <= Duration::from_secs(1), "{:?}", delays[0]);
    assert!(delays[1] <= Duration::from_secs(2), "{:?}", delays[1]);
    assert!(delays.iter().all(|delay| *delay <= Duration::from_secs(60)));
    let late = &delays[10..];
    assert!(late.iter().any(|delay| *delay < Duration::from_secs(3)), "full jitter reaches down");
    assert!(late.iter().any(|delay| *delay > Duration::from_secs(57)), "and up");
}

#[test]
fn a_short_life_is_retried_within_a_tenth_of_it() {
    let mut rotation = holding(Duration::from_secs(20));
    let mut now = first_request(&mut rotation);
    for _ in 0..3 {
        rotation.handle(now, failed(web()));
        let next = start().after(rotation.deadline().unwrap().0);
        assert!(next.mono.since(now.mono) <= Duration::from_secs(2));
        now = next;
        rotation.tick(now);
    }
}

#[test]
fn a_forgotten_identity_is_withdrawn_and_its_late_answer_thrown_away() {
    let mut rotation = rotation();
    rotation.handle(start(), Event::Need(web()));
    assert_eq!(rotation.handle(start(), Event::Forget(web())), [Effect::Forget(web())]);
    assert_eq!(rotation.handle(start(), Event::Forget(web())), []);
    assert_eq!(rotation.handle(start(), issued(start(), web(), DAY)), []);
    assert_eq!(rotation.status().count(), 0);
    assert_eq!(rotation.deadline(), None);
}

#[test]
fn needed_again_while_a_request_is_in_flight_its_answer_is_used() {
    let mut rotation = rotation();
    rotation.handle(start(), Event::Need(web()));
    rotation.handle(start(), Event::Forget(web()));
    assert_eq!(rotation.handle(start(), Event::Need(web())), [], "one request in flight per identity");
    assert_eq!(rotation.handle(start(), issued(start(), web(), DAY)), [Effect::Publish(web())]);
}

#[test]
fn an_answer_that_nobody_awaits_is_ignored() {
    let mut rotation = rotation();
    assert_eq!(rotation.handle(start(), issued(start(), web(), DAY)), []);
    assert_eq!(rotation.handle(start(), failed(web())), []);
    assert_eq!(rotation.handle(start(), Event::Revoked(web())), []);
    // Nor does a second answer replace the first, or a late failure put the renewal off.
    let mut rotation = holding(DAY);
    let renew = rotation.status().next().unwrap().1;
    assert_eq!(rotation.handle(start(), issued(start(), web(), DAY * 2)), []);
    assert_eq!(rotation.handle(start(), failed(web())), []);
    assert_eq!(rotation.status().next().unwrap().1, renew);
}

#[test]
fn a_certificate_that_is_not_valid_now_counts_as_a_failure() {
    for shift in [Duration::from_secs(3600), DAY * 2] {
        let mut rotation = rotation();
        rotation.handle(start(), Event::Need(web()));
        let early = Now { wall: start().wall - shift, ..start() };
        let late = Now { wall: start().wall + shift + DAY, ..start() };
        for now in [early, late] {
            assert_eq!(rotation.handle(now, issued(start(), web(), DAY)), [], "not published");
            let retry = now.after(rotation.deadline().unwrap().since(now.mono));
            assert_eq!(rotation.tick(retry), [Effect::Request(web())]);
        }
    }
}

#[test]
fn a_kept_certificate_is_served_without_asking_and_renewed_by_its_own_age() {
    let mut rotation = rotation();
    let kept = |at: Duration| Event::Issued {
        id: web(),
        from: Source::Kept,
        issue: Issue { at: start().wall - at, ..issue(start(), DAY - at) },
    };
    assert_eq!(rotation.handle(start(), kept(DAY / 4)), [Effect::Publish(web())]);
    let renewed = first_request(&mut rotation).mono.0;
    assert!(renewed >= DAY.mul_f64(0.149) && renewed <= DAY.mul_f64(0.351), "{renewed:?}");

    let mut past_renewal = self::rotation();
    assert_eq!(
        past_renewal.handle(start(), kept(DAY.mul_f64(0.7))),
        [Effect::Publish(web()), Effect::Request(web())]
    );
    let mut expired = self::rotation();
    let late = start().after(DAY * 2);
    assert_eq!(expired.handle(late, kept(DAY / 4)), [Effect::Request(web())]);
}

#[test]
fn a_revoked_certificate_is_replaced_soon_and_served_meanwhile() {
    let mut rotation = holding(DAY);
    assert_eq!(
        rotation
            .handle(start(), Event::Revoked(web()))
            .iter()
            .filter(|e| matches!(e, Effect::Expired(_)))
            .count(),
        0
    );
    let at = rotation.deadline().unwrap();
    assert!(at <= Mono::from_millis(1000), "{at:?}");
    assert_eq!(rotation.tick(start().after(at.0)), [Effect::Request(web())]);
}

#[test]
fn a_changed_bundle_retries_what_failed_without_waiting_out_its_backoff() {
    let mut rotation = rotation();
    let mut now = start();
    rotation.handle(now, Event::Need(web()));
    for _ in 0..10 {
        rotation.handle(now, failed(web()));
        now = start().after(rotation.deadline().unwrap().0);
        rotation.tick(now);
    }
    rotation.handle(now, failed(web()));
    rotation.handle(now, Event::TrustChanged);
    if let Some(at) = rotation.deadline() {
        assert!(at.since(now.mono) <= Duration::from_secs(1));
    }
}

#[test]
fn a_wall_clock_set_forward_past_expiry_is_noticed_within_the_recheck() {
    let mut rotation = holding(DAY);
    let at = rotation.deadline().unwrap();
    assert!(at.0 <= RECHECK);
    let stepped = Now { mono: at, wall: start().wall + DAY * 3 };
    assert_eq!(rotation.tick(stepped), [Effect::Expired(web()), Effect::Request(web())]);
}

#[test]
fn a_wall_clock_set_forward_past_the_renew_point_renews() {
    let mut rotation = holding(DAY);
    let stepped = Now { mono: rotation.deadline().unwrap(), wall: start().wall + DAY.mul_f64(0.61) };
    assert_eq!(rotation.tick(stepped), [Effect::Request(web())]);
}

#[test]
fn a_wall_clock_set_back_does_not_put_renewal_off() {
    let mut rotation = holding(DAY);
    let back = |mono: Duration| Now { mono: Mono(mono), wall: start().wall + mono - DAY / 10 };
    assert_eq!(rotation.tick(back(DAY.mul_f64(0.39))), []);
    assert_eq!(rotation.tick(back(DAY.mul_f64(0.601))), [Effect::Request(web())]);
}

/// One thing that happens in a history.
#[derive(Clone, Copy, Debug)]
enum Step {
    Need(u8),
    Forget(u8),
    Trust,
    Revoke(u8),
    /// The wall clock steps by so many seconds.
    Wall(i32),
    /// Time passes, in seconds; the CA answers after so many seconds, or refuses.
    Pass {
        secs: u32,
        ca: Ca,
    },
}

#[derive(Clone, Copy, Debug)]
enum Ca {
    Up,
    Down,
    Silent,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..4_u8).prop_map(Step::Need),
        2 => (0..4_u8).prop_map(Step::Forget),
        1 => Just(Step::Trust),
        1 => (0..4_u8).prop_map(Step::Revoke),
        1 => (-90_000..90_000_i32).prop_map(Step::Wall),
        6 => (0..25_000_u32, prop_oneof![Just(Ca::Up), Just(Ca::Down), Just(Ca::Silent)])
            .prop_map(|(secs, ca)| Step::Pass { secs, ca }),
    ]
}

/// What an outsider sees: who needs what, which requests are open, what is served.
struct Outside {
    now: Now,
    needed: [bool; 4],
    open: [bool; 4],
    served: [Option<Validity>; 4],
}

impl Outside {
    fn index(id: &SpiffeId) -> usize {
        (0..4).find(|n| *id == self::id(&n.to_string())).expect("only these are needed")
    }

    /// Checks effects against what may never happen; `offered` is the certificate just handed in.
    fn take(&mut self, effects: Vec<Effect>, offered: Option<Validity>) {
        for effect in effects {
            match effect {
                Effect::Request(id) => {
                    let n = Self::index(&id);
                    assert!(self.needed[n], "a forgotten identity is requested");
                    assert!(!self.open[n], "two requests in flight");
                    self.open[n] = true;
                }
                Effect::Publish(id) => {
                    let n = Self::index(&id);
                    assert!(self.needed[n], "a forgotten identity is published");
                    let validity = offered.expect("published without a certificate");
                    assert!(validity.contains(self.now.wall), "published though not valid");
                    self.served[n] = Some(validity);
                }
                Effect::Expired(id) => {
                    let held = self.served[Self::index(&id)].take().expect("expired without being served");
                    assert!(held.not_after < self.now.wall, "withdrawn before its expiry");
                }
                Effect::Forget(id) => {
                    let n = Self::index(&id);
                    assert!(!self.needed[n]);
                    self.served[n] = None;
                }
            }
        }
    }

    fn answer(&mut self, rotation: &mut Rotation, up: bool) {
        for n in 0..4 {
            if self.open[n] {
                self.open[n] = false;
                let id = id(&n.to_string());
                let offered = issue(self.now, DAY);
                let event = if up { issued(self.now, id, DAY) } else { failed(id) };
                let effects = rotation.handle(self.now, event);
                self.take(effects, up.then_some(offered.validity));
            }
        }
    }

    fn pass(&mut self, rotation: &mut Rotation, secs: u32, ca: Ca) {
        let end = self.now.mono + Duration::from_secs(u64::from(secs));
        loop {
            match ca {
                Ca::Up => self.answer(rotation, true),
                Ca::Down => self.answer(rotation, false),
                Ca::Silent => {}
            }
            let next = rotation.deadline().filter(|at| *at <= end).unwrap_or(end);
            let span = next.since(self.now.mono);
            self.now = self.now.after(span);
            let effects = rotation.tick(self.now);
            self.take(effects, None);
            for held in self.served.iter().flatten() {
                assert!(held.left(self.now.wall) + RECHECK > Duration::ZERO);
            }
            if next == end && !matches!(ca, Ca::Silent) && self.open.iter().any(|open| *open) {
                continue;
            }
            if next == end {
                return;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Any history: never two requests in flight, nothing for a forgotten identity, nothing served past its end.
    #[test]
    fn no_history_breaks_what_must_never_happen(seed in any::<u64>(), steps in prop::collection::vec(step(), 1..40)) {
        let mut rotation = Rotation::new(Policy::default(), Seed(seed));
        let mut outside = Outside { now: start(), needed: [false; 4], open: [false; 4], served: [None; 4] };
        for step in steps {
            match step {
                Step::Need(n) => {
                    outside.needed[usize::from(n)] = true;
                    let effects = rotation.handle(outside.now, Event::Need(id(&n.to_string())));
                    outside.take(effects, None);
                }
                Step::Forget(n) => {
                    outside.needed[usize::from(n)] = false;
                    let effects = rotation.handle(outside.now, Event::Forget(id(&n.to_string())));
                    outside.take(effects, None);
                }
                Step::Trust => {
                    let effects = rotation.handle(outside.now, Event::TrustChanged);
                    outside.take(effects, None);
                }
                Step::Revoke(n) => {
                    let effects = rotation.handle(outside.now, Event::Revoked(id(&n.to_string())));
                    outside.take(effects, None);
                }
                Step::Wall(secs) => {
                    let span = Duration::from_secs(u64::from(secs.unsigned_abs()));
                    outside.now.wall = if secs < 0 { outside.now.wall - span } else { outside.now.wall + span };
                }
                Step::Pass { secs, ca } => outside.pass(&mut rotation, secs, ca),
            }
        }
    }

    /// If the CA is up for longer than the backoff cap between renew point and expiry, there is no gap.
    #[test]
    fn a_ca_up_for_longer_than_the_cap_renews_before_expiry(
        seed in any::<u64>(),
        life_secs in 10..200_000_u64,
        up_at in 0.0..1.0_f64,
        outages in prop::collection::vec((0.0..1.0_f64, 0.0..1.0_f64), 0..4),
    ) {
        let life = Duration::from_secs(life_secs);
        let mut rotation = Rotation::new(Policy::default(), Seed(seed));
        rotation.handle(start(), Event::Need(web()));
        rotation.handle(start(), issued(start(), web(), life));
        let renew = rotation.status().next().unwrap().1.renew_at.unwrap().duration_since(start().wall).unwrap();
        let cap = Policy::default().retry_cap(Some(life)) + Duration::from_millis(1);
        prop_assume!(renew + cap < life);
        // The one interval that is long enough; besides it the CA flickers, and is down elsewhere.
        let up_from = renew + (life - renew - cap).mul_f64(up_at);
        let up = |at: Duration| {
            (at >= up_from && at <= up_from + cap)
                || outages.iter().any(|(from, len)| {
                    let from = life.mul_f64(*from);
                    at >= from && at < from + cap.mul_f64(*len)
                })
        };
        let mut now = start();
        loop {
            let at = rotation.deadline().expect("something is scheduled");
            now = now.after(at.since(now.mono));
            let mut effects = rotation.tick(now);
            prop_assert!(!effects.contains(&Effect::Expired(web())), "expired at {:?}", now.mono);
            // A retry may be drawn for at once: then the answer's own effects hold the next request.
            while effects.contains(&Effect::Request(web())) {
                let event = if up(now.mono.0) { issued(now, web(), life) } else { failed(web()) };
                effects = rotation.handle(now, event);
            }
            if effects.contains(&Effect::Publish(web())) {
                prop_assert!(now.mono.0 < life);
                break;
            }
        }
    }
}
