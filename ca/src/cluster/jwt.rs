//! What a token says of itself, which nobody has verified: good for nothing but to refuse, without asking the API server,
//! what it would refuse as well.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::Settings;
use super::review::{NotAnAgent, shortened, username};

/// How far the API server's clock may be behind ours.
const SKEW: Duration = Duration::from_secs(300);

/// The claims that are looked at (RFC 7519, 4.1).
#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    sub: String,
    #[serde(default)]
    aud: Audiences,
    /// In seconds since 1970; a fraction is allowed.
    #[serde(default)]
    exp: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

impl Default for Audiences {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

/// Refuses a token that cannot be an agent's, whoever has signed it.
pub(super) fn check(token: &str, settings: &Settings, now: SystemTime) -> Result<(), NotAnAgent> {
    let claims = claims(token).ok_or(NotAnAgent::Unfit("is no JWT"))?;
    let is_ours = match &claims.aud {
        Audiences::One(one) => *one == settings.audience,
        Audiences::Many(all) => all.contains(&settings.audience),
    };
    if !is_ours {
        return Err(NotAnAgent::Unfit("is for another audience"));
    }
    if claims.sub != username(&settings.agent) {
        return Err(NotAnAgent::Account { found: shortened(claims.sub), wanted: settings.agent.clone() });
    }
    let earliest = now.checked_sub(SKEW).and_then(|then| then.duration_since(UNIX_EPOCH).ok());
    let has_expired = earliest.zip(claims.exp).is_some_and(|(then, exp)| exp < then.as_secs_f64());
    if has_expired { Err(NotAnAgent::Unfit("has expired")) } else { Ok(()) }
}

fn claims(token: &str) -> Option<Claims> {
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

/// One with these claims and a signature that is none.
#[cfg(test)]
pub(crate) fn unsigned(claims: &serde_json::Value) -> String {
    let encode = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.c2VjcmV0", encode(&serde_json::json!({"alg": "RS256"})), encode(claims))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: u64 = 1_700_000_000;

    fn said(token: &str) -> Result<(), String> {
        let now = UNIX_EPOCH + Duration::from_secs(NOW);
        check(token, &Settings::default(), now).map_err(|error| error.to_string())
    }

    fn with(key: &str, value: Value) -> Result<(), String> {
        let agent = "system:serviceaccount:adit-system:adit-agent";
        let mut claims = json!({"aud": ["adit-ca"], "sub": agent, "exp": NOW + 600, "jti": "1"});
        claims[key] = value;
        said(&unsigned(&claims))
    }

    #[test]
    fn a_token_that_may_be_an_agents_is_left_to_the_api_server() {
        assert_eq!(with("aud", json!(["https://kubernetes", "adit-ca"])), Ok(()));
        assert_eq!(with("aud", json!("adit-ca")), Ok(()));
        // By our clock it is over, which the API server's may see otherwise.
        assert_eq!(with("exp", json!(NOW - 299)), Ok(()));
        assert_eq!(with("exp", json!(1_700_000_000.5)), Ok(()));
        assert_eq!(with("exp", Value::Null), Ok(()));
    }

    #[test]
    fn what_is_no_agents_token_is_told_why() {
        for no_jwt in ["", "x", "a.b", "a.e30.c.d", "a.!.c", "a.e30=.c", "a.MQ.c", "a.bm9uZQ.c"] {
            assert_eq!(said(no_jwt), Err("the token is no JWT".into()), "{no_jwt}");
        }
        for aud in [json!("https://kubernetes"), json!(["adit-ca2"]), json!([])] {
            assert_eq!(with("aud", aud), Err("the token is for another audience".into()));
        }
        assert_eq!(said("a.e30.c"), Err("the token is for another audience".into()));
        assert_eq!(with("exp", json!(NOW - 301)), Err("the token has expired".into()));
        let other = with("sub", json!("system:serviceaccount:shop:adit-agent")).unwrap_err();
        assert!(other.starts_with("system:serviceaccount:shop:adit-agent is not adit-system/"), "{other}");
        let long = with("sub", json!("x".repeat(10_000))).unwrap_err();
        assert!(long.len() < 400, "{}", long.len());
    }
}
