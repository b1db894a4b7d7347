//! Decides, from the pods that are known, whether a caller's own pod is where its token says, and whether a service
//! account runs on its node. Pure; [`crate::cluster::pods`] keeps what is known up to date.
//!
//! A pod that terminates counts until it is finished: its connections go on, and so must its certificate.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::cluster::Account;

/// A pod's namespace and name.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct PodName {
    /// Its namespace.
    pub(crate) namespace: Arc<str>,
    /// Its name.
    pub(crate) name: Arc<str>,
}

/// What is kept of a pod that is scheduled.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Pod {
    /// Its uid.
    pub(crate) uid: Arc<str>,
    /// Its ServiceAccount's name; static pods have none.
    pub(crate) account: Arc<str>,
    /// Whether it is over.
    pub(crate) phase: Phase,
}

/// Whether a pod is over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Phase {
    /// It runs, will run, or terminates.
    Going,
    /// It has succeeded or failed, and will never run again.
    Finished,
}

/// The pods that are scheduled, by node.
#[derive(Debug, Default)]
pub(crate) struct Pods {
    nodes: HashMap<Arc<str>, BTreeMap<PodName, Pod>>,
    on: HashMap<PodName, Arc<str>>,
}

/// Who calls, by what its token says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Claim {
    /// The node.
    pub(crate) node: Arc<str>,
    /// The calling pod.
    pub(crate) pod: PodName,
    /// Its uid.
    pub(crate) uid: Arc<str>,
}

/// Why a calling pod is not believed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NotThere {
    /// No pod of this name and uid is scheduled.
    Gone,
    /// It is finished.
    Finished,
    /// It is on another node.
    Elsewhere,
}

impl Pods {
    /// Takes up a pod as it is now.
    pub(crate) fn put(&mut self, name: PodName, node: &Arc<str>, pod: Pod) {
        if self.on.get(&name).is_some_and(|before| before != node) {
            self.remove(&name);
        }
        self.on.insert(name.clone(), Arc::clone(node));
        self.nodes.entry(Arc::clone(node)).or_default().insert(name, pod);
    }

    /// Forgets a pod.
    pub(crate) fn remove(&mut self, name: &PodName) {
        let Some(node) = self.on.remove(name) else {
            return;
        };
        if let Some(pods) = self.nodes.get_mut(&node) {
            pods.remove(name);
            if pods.is_empty() {
                self.nodes.remove(&node);
            }
        }
    }

    /// How many pods are known.
    pub(crate) fn len(&self) -> usize {
        self.on.len()
    }

    /// Whether the calling pod is there, by name and uid, going, and on the claimed node.
    pub(crate) fn check(&self, claim: &Claim) -> Result<(), NotThere> {
        let node = self.on.get(&claim.pod).ok_or(NotThere::Gone)?;
        let pod = self.nodes.get(node).and_then(|pods| pods.get(&claim.pod)).ok_or(NotThere::Gone)?;
        if pod.uid != claim.uid {
            return Err(NotThere::Gone);
        }
        if *node != claim.node {
            return Err(NotThere::Elsewhere);
        }
        match pod.phase {
            Phase::Going => Ok(()),
            Phase::Finished => Err(NotThere::Finished),
        }
    }

    /// Whether a pod of this account is scheduled on the node and is not finished.
    pub(crate) fn runs(&self, node: &str, account: &Account) -> bool {
        let is_one = |(name, pod): (&PodName, &Pod)| {
            *name.namespace == account.namespace && *pod.account == account.name && pod.phase == Phase::Going
        };
        self.nodes.get(node).is_some_and(|pods| pods.iter().any(is_one))
    }

    /// The nodes on which this account runs, sorted.
    pub(crate) fn nodes_with(&self, account: &Account) -> Vec<Arc<str>> {
        let mut nodes: Vec<_> = self.nodes.keys().filter(|node| self.runs(node, account)).cloned().collect();
        nodes.sort();
        nodes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> PodName {
        let (namespace, name) = text.split_once('/').unwrap();
        PodName { namespace: namespace.into(), name: name.into() }
    }

    fn account(text: &str) -> Account {
        let (namespace, name) = text.split_once('/').unwrap();
        Account { namespace: namespace.into(), name: name.into() }
    }

    /// `NAMESPACE/NAME UID NODE ACCOUNT PHASE` a line.
    fn pods(lines: &str) -> Pods {
        let mut pods = Pods::default();
        for line in lines.lines().filter(|line| !line.trim().is_empty()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let phase = if words[4] == "finished" { Phase::Finished } else { Phase::Going };
            let pod = Pod { uid: words[1].into(), account: words[3].into(), phase };
            pods.put(name(words[0]), &words[2].into(), pod);
        }
        pods
    }

    const CLUSTER: &str = "
        adit-system/agent-1 a1 node1 adit-agent going
        adit-system/agent-2 a2 node2 adit-agent going
        adit-system/agent-3 a3 node3 adit-agent finished
        shop/web-1          w1 node1 web        going
        shop/cart-2         c2 node2 cart       going
        shop/job-1          j1 node1 job        finished
        other/web-2         o2 node2 web        going
    ";

    #[test]
    fn an_account_is_had_where_a_pod_of_it_runs_and_nowhere_else() {
        let pods = pods(CLUSTER);
        for (wanted, node, runs) in [
            ("shop/web", "node1", true),
            ("shop/web", "node2", false),
            ("other/web", "node2", true),
            ("other/web", "node1", false),
            ("shop/cart", "node2", true),
            ("shop/cart", "node1", false),
            ("shop/job", "node1", false),
            ("adit-system/adit-agent", "node1", true),
            ("shop/", "node1", false),
            ("shop/web", "node9", false),
            ("shop/web", "", false),
        ] {
            assert_eq!(pods.runs(node, &account(wanted)), runs, "{wanted} on {node}");
        }
        let nodes = pods.nodes_with(&account("adit-system/adit-agent"));
        assert_eq!(nodes, [Arc::from("node1"), Arc::from("node2")]);
    }

    #[test]
    fn a_calling_pod_is_believed_by_name_uid_node_and_life() {
        let pods = pods(CLUSTER);
        for (pod, uid, node, found) in [
            ("adit-system/agent-1", "a1", "node1", Ok(())),
            ("adit-system/agent-1", "a1", "node2", Err(NotThere::Elsewhere)),
            ("adit-system/agent-1", "a2", "node1", Err(NotThere::Gone)),
            ("adit-system/agent-9", "a1", "node1", Err(NotThere::Gone)),
            ("shop/agent-1", "a1", "node1", Err(NotThere::Gone)),
            ("adit-system/agent-3", "a3", "node3", Err(NotThere::Finished)),
        ] {
            let claim = Claim { node: node.into(), pod: name(pod), uid: uid.into() };
            assert_eq!(pods.check(&claim), found, "{claim:?}");
        }
    }

    #[test]
    fn a_pod_that_is_made_again_elsewhere_leaves_nothing_where_it_was() {
        let mut pods = pods("shop/db-0 d1 node1 db going");
        let again = Pod { uid: "d2".into(), account: "db".into(), phase: Phase::Going };
        pods.put(name("shop/db-0"), &"node2".into(), again);
        assert!(!pods.runs("node1", &account("shop/db")) && pods.runs("node2", &account("shop/db")));
        pods.remove(&name("shop/db-0"));
        pods.remove(&name("shop/db-0"));
        assert!(!pods.runs("node2", &account("shop/db")));
        assert!(pods.nodes.is_empty() && pods.len() == 0, "nothing is kept of nodes without pods");
    }
}
