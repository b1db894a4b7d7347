//! What the plugin is told when a request fails, and what the user reads of it in the pod's Event.

use adit_core::pods::{Lacking, Refusal};
use adit_proto::cni::{Code, Failure, PodRef, Reply};

use crate::netns::NetnsError;

/// The reply to an ADD or CHECK that the machine answered.
pub(super) fn reply(pod: &PodRef, answer: Result<(), Refusal>) -> Reply {
    match answer {
        Ok(()) => Reply::Ok,
        Err(refusal) => Reply::Failed(Failure {
            // The kubelet treats every code alike; to others this one says that the next try may succeed.
            code: Code::TryAgainLater,
            message: format!("adit: {}/{}: {refusal}", pod.namespace, pod.name),
            details: hint(&refusal).to_owned(),
        }),
    }
}

/// The reply to an ADD whose CNI_NETNS is none.
pub(super) fn no_netns(error: &NetnsError) -> Reply {
    Reply::Failed(Failure {
        code: Code::BadEnvironment,
        message: format!("adit: {}", super::perform::words(error)),
        details: "CNI_NETNS".to_owned(),
    })
}

/// What to look at.
fn hint(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Deadline(lacking) | Refusal::NotCaptured(lacking) => match lacking {
            Lacking::Enrolment => {
                "does the agent of this node reach the API server? its /healthz/ready names what it misses"
            }
            Lacking::Certificate(_) => "is adit-ca running, and does the agent of this node reach it?",
            Lacking::Listeners => "does another process in the pod use port 15001, 15006 or 15008?",
            Lacking::Rules => "the log of the agent of this node says what iptables answered",
            Lacking::Annotation => "does the agent of this node reach the API server, and may it patch pods?",
            Lacking::Release => "connections of an earlier capture are being drained",
        },
        Refusal::Failed(_) => "the log of the agent of this node says more",
        Refusal::Terminating | Refusal::Deleted => "nothing is wrong: the pod was not to start any more",
        Refusal::TooMany => "are there leftovers of removed pods in the agent's journal?",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_pod_what_it_lacks_and_where_to_look() {
        let pod = PodRef { namespace: "shop".into(), name: "web-0".into(), uid: "u1".into() };
        let id = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        let refusal = Refusal::Deadline(Lacking::Certificate(id));
        let Reply::Failed(failure) = reply(&pod, Err(refusal)) else { panic!("not a failure") };
        assert_eq!(failure.code, Code::TryAgainLater);
        assert_eq!(
            failure.message,
            "adit: shop/web-0: not captured in time: no certificate for spiffe://cluster.local/ns/shop/sa/web"
        );
        assert!(failure.details.contains("adit-ca"));
        assert_eq!(reply(&pod, Ok(())), Reply::Ok);
    }
}
