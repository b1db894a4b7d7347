//! Asks the API server whose token this is (TokenReview), and reads its answer.

use std::collections::BTreeMap;

use http::Method;
use serde::Deserialize;
use serde_json::json;

use super::client::{ApiError, ApiServer, Form};
use super::{Account, Settings};
use crate::placement::{Claim, PodName};

const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// How much of a reason, or of an account's name, that others have written is passed on, in bytes.
const REASON_LEN_MAX: usize = 300;

/// Why a token is not an agent's.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NotAnAgent {
    /// The API server does not know it (any more), or it is for another audience.
    #[error("the API server does not accept the token: {0}")]
    Refused(String),
    /// It cannot be one, by its own words: the API server is not asked.
    #[error("the token {0}")]
    Unfit(&'static str),
    /// It was accepted by something that knows no audiences.
    #[error("the token was not checked for the audience {0}")]
    Audience(String),
    /// It is another's.
    #[error("{found} is not {wanted}, the agents' ServiceAccount")]
    Account {
        /// Who it is.
        found: String,
        /// Who alone may ask.
        wanted: Account,
    },
    /// It is not bound to a pod on a node.
    #[error(
        "the token does not say {0}: only one that is projected into a pod does (Kubernetes 1.32 or later)"
    )]
    NoClaim(&'static str),
}

/// `status` of a TokenReview.
#[derive(Debug, Default, Deserialize)]
struct Status {
    #[serde(default)]
    authenticated: bool,
    #[serde(default)]
    audiences: Option<Vec<String>>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    user: Option<User>,
}

#[derive(Debug, Default, Deserialize)]
struct User {
    #[serde(default)]
    username: String,
    #[serde(default)]
    extra: Option<BTreeMap<String, Vec<String>>>,
}

#[derive(Debug, Deserialize)]
struct Review {
    #[serde(default)]
    status: Status,
}

/// Who the bearer of `token` says to be, once the API server believes it.
pub(super) async fn review(
    api: &ApiServer,
    settings: &Settings,
    token: &str,
) -> Result<Result<Claim, NotAnAgent>, ApiError> {
    let asked = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": [settings.audience]},
    });
    let review: Review = api.send("review a token", Method::POST, PATH, (Form::Json, &asked)).await?;
    Ok(claim(review.status, &settings.audience, &settings.agent))
}

/// What an answer means.
fn claim(status: Status, audience: &str, agent: &Account) -> Result<Claim, NotAnAgent> {
    if !status.authenticated {
        let reason = status.error.filter(|error| !error.is_empty());
        return Err(NotAnAgent::Refused(shortened(reason.unwrap_or_else(|| "no reason given".into()))));
    }
    // An authenticator that knows no audiences says none, and would take every token of the cluster.
    if !status.audiences.unwrap_or_default().iter().any(|known| known == audience) {
        return Err(NotAnAgent::Audience(audience.to_owned()));
    }
    let user = status.user.unwrap_or_default();
    if user.username != username(agent) {
        return Err(NotAnAgent::Account { found: user.username, wanted: agent.clone() });
    }
    let extra = user.extra.unwrap_or_default();
    let of = |key: &str, what: &'static str| match extra.get(key).map(Vec::as_slice) {
        Some([one]) if !one.is_empty() => Ok(one.as_str()),
        Some(_) | None => Err(NotAnAgent::NoClaim(what)),
    };
    Ok(Claim {
        node: of(NODE_NAME, "its node")?.into(),
        pod: PodName { namespace: agent.namespace.as_str().into(), name: of(POD_NAME, "its pod")?.into() },
        uid: of(POD_UID, "its pod's uid")?.into(),
    })
}

/// How the API server names an account.
pub(super) fn username(account: &Account) -> String {
    format!("system:serviceaccount:{}:{}", account.namespace, account.name)
}

pub(super) fn shortened(mut text: String) -> String {
    let end = (0..=REASON_LEN_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or_default());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent() -> Account {
        Settings::default().agent
    }

    /// As a real cluster answered.
    fn answer() -> serde_json::Value {
        json!({
            "authenticated": true,
            "audiences": ["adit-ca"],
            "user": {
                "username": "system:serviceaccount:adit-system:adit-agent",
                "uid": "f5f0",
                "groups": ["system:serviceaccounts", "system:authenticated"],
                "extra": {
                    "authentication.kubernetes.io/credential-id": ["JTI=1"],
                    "authentication.kubernetes.io/node-name": ["node1"],
                    "authentication.kubernetes.io/node-uid": ["n1"],
                    "authentication.kubernetes.io/pod-name": ["agent-1"],
                    "authentication.kubernetes.io/pod-uid": ["a1"],
                },
            },
        })
    }

    fn check(change: impl FnOnce(&mut serde_json::Value)) -> Result<Claim, String> {
        let mut status = answer();
        change(&mut status);
        let status = serde_json::from_value(status).unwrap();
        claim(status, "adit-ca", &agent()).map_err(|error| error.to_string())
    }

    #[test]
    fn an_agents_token_says_its_pod_and_its_node() {
        let claim = check(|_| {}).unwrap();
        assert_eq!((&*claim.node, &*claim.uid), ("node1", "a1"));
        assert_eq!((&*claim.pod.namespace, &*claim.pod.name), ("adit-system", "agent-1"));
    }

    #[test]
    fn every_other_token_is_refused_with_what_is_wrong() {
        let refused = "the API server does not accept the token: ";
        let extra = |status: &mut serde_json::Value, key: &str, value: serde_json::Value| {
            status["user"]["extra"][format!("authentication.kubernetes.io/{key}")] = value;
        };
        type Change = Box<dyn FnOnce(&mut serde_json::Value)>;
        let cases: [(Change, &str); 11] = [
            (Box::new(|s| *s = json!({})), "no reason given"),
            (Box::new(|s| *s = json!({"error": "audiences differ"})), "audiences differ"),
            (Box::new(|s| s["authenticated"] = json!(false)), refused),
            (Box::new(|s| s["audiences"] = json!(null)), "not checked for the audience adit-ca"),
            (Box::new(|s| s["audiences"] = json!(["https://kubernetes"])), "not checked for the audience"),
            (
                Box::new(|s| s["user"]["username"] = json!("system:serviceaccount:shop:adit-agent")),
                "system:serviceaccount:shop:adit-agent is not adit-system/adit-agent",
            ),
            (Box::new(|s| s["user"] = json!(null)), "is not adit-system/adit-agent"),
            (Box::new(|s| s["user"]["extra"] = json!(null)), "does not say its node"),
            (Box::new(move |s| extra(s, "node-name", json!(["node1", "node2"]))), "does not say its node"),
            (Box::new(move |s| extra(s, "pod-name", json!([""]))), "does not say its pod"),
            (Box::new(move |s| extra(s, "pod-uid", json!([]))), "does not say its pod's uid"),
        ];
        for (change, words) in cases {
            let said = check(change).unwrap_err();
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let status = Status { error: Some("ä".repeat(1000)), ..Status::default() };
        let Err(NotAnAgent::Refused(reason)) = claim(status, "a", &agent()) else {
            panic!("not refused");
        };
        assert!(reason.len() <= REASON_LEN_MAX && reason.len() > REASON_LEN_MAX - 2, "{}", reason.len());
    }
}
