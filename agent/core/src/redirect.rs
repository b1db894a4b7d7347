//! The rules that capture a pod's TCP, as a plan: what stands now, and what is wanted, in; edits out.
//!
//! [`plan`], [`removal`] and [`compare`] read the text of `iptables-save` and return `iptables-restore` text or the
//! differences. They run nothing and know no namespace: `agent::redirect` executes edits, in the order returned.
//! Their words are in [`model`], rule text in [`rules`], the reading of what stands in [`save`].

mod drift;
mod model;
mod rules;
mod save;

use std::fmt::Write as _;

pub use drift::Drift;
pub use model::{
    CONN_MARK, CONNTRACK_ZONE, Edit, Family, InboundMatch, Mark, Part, ROUTE_TABLE, Sysctl, Table, Wanted,
};
use rules::Chain;
use save::{Save, SavedTable};

/// The edits that turn what stands (`save`, the text of iptables-save) into what is wanted, in the order raw,
/// mangle, nat, filter. Empty when nothing differs; a table that is as wanted gets no edit.
///
/// Rules that are not ours are left alone, but for jumps to our chains.
pub fn plan(save: &str, wanted: &Wanted, family: Family) -> Vec<Edit> {
    let save = Save::parse(save);
    let chains = rules::chains(family, wanted);
    Table::IN_ORDER
        .into_iter()
        .filter(|table| !drift_of(*table, &save, &chains, family).is_empty())
        .map(|table| edit_of(table, &save, &chains, family))
        .collect()
}

/// How what stands differs from what is wanted; empty exactly when [`plan`] is.
pub fn compare(save: &str, wanted: &Wanted, family: Family) -> Vec<Drift> {
    let save = Save::parse(save);
    let chains = rules::chains(family, wanted);
    Table::IN_ORDER.into_iter().flat_map(|table| drift_of(table, &save, &chains, family)).collect()
}

/// The edits that take `part` of our rules out of what stands: every copy of every jump, then the chains.
pub fn removal(save: &str, part: Part, family: Family) -> Vec<Edit> {
    let save = Save::parse(save);
    part.tables()
        .into_iter()
        .filter_map(|table| {
            let saved = save.table(table);
            let own = saved.own_chains();
            if own.is_empty() {
                return None;
            }
            let mut text = format!("*{table}\n");
            delete_jumps(&mut text, &saved, |_| true);
            drop_chains(&mut text, &own);
            text.push_str("COMMIT\n");
            Some(Edit { family, table, text })
        })
        .collect()
}

/// Whether any rule or chain of ours stands in `save`.
pub fn holds_ours(save: &str) -> bool {
    let save = Save::parse(save);
    Table::IN_ORDER.into_iter().any(|table| !save.table(table).own_chains().is_empty())
}

/// Whether `save` holds a rule or chain that somebody wrote and that is not ours.
pub fn holds_others(save: &str) -> bool {
    Save::parse(save).holds_others()
}

/// Whether `save` holds a rule in nat that is not ours: it may come before our redirects.
pub fn holds_others_nat(save: &str) -> bool {
    Save::parse(save).table(Table::Nat).holds_others()
}

fn drift_of(table: Table, save: &Save<'_>, chains: &[Chain], family: Family) -> Vec<Drift> {
    let saved = save.table(table);
    let mut drift = Vec::new();
    for chain in chains.iter().filter(|chain| chain.table == table) {
        if !saved.jump_is_right(chain) {
            drift.push(Drift::Jump { family, table, chain: chain.name });
        }
        if !saved.rules_are(chain) {
            drift.push(Drift::Rules { family, table, chain: chain.name });
        }
    }
    let stale = stale_chains(table, &saved, chains);
    drift.extend(stale.into_iter().map(|chain| Drift::Stale { family, table, chain: chain.to_owned() }));
    drift
}

/// Rewrites our part of one table: jumps only where they are wrong, so that a right one never goes missing.
fn edit_of(table: Table, save: &Save<'_>, chains: &[Chain], family: Family) -> Edit {
    let saved = save.table(table);
    let stale = stale_chains(table, &saved, chains);
    let ours: Vec<&Chain> = chains.iter().filter(|chain| chain.table == table).collect();
    let mut text = format!("*{table}\n");
    for chain in &ours {
        // Under --noflush this line makes the chain or empties it.
        let _infallible = writeln!(text, ":{} - [0:0]", chain.name);
    }
    let right = |target: &str| ours.iter().any(|chain| chain.name == target && saved.jump_is_right(chain));
    delete_jumps(&mut text, &saved, |target| !right(target));
    drop_chains(&mut text, &stale);
    for chain in &ours {
        if !saved.jump_is_right(chain) {
            let _infallible = writeln!(text, "-I {} 1 -j {}", chain.hook, chain.name);
        }
        for rule in &chain.rules {
            let _infallible = writeln!(text, "-A {} {rule}", chain.name);
        }
    }
    text.push_str("COMMIT\n");
    Edit { family, table, text }
}

fn stale_chains<'s>(table: Table, saved: &SavedTable<'s>, chains: &[Chain]) -> Vec<&'s str> {
    let wanted = |name: &str| chains.iter().any(|chain| chain.table == table && chain.name == name);
    saved.own_chains().into_iter().filter(|name| !wanted(name)).collect()
}

/// Deletes each rule outside our chains that leads into one whose name is `chosen`, by its own text.
fn delete_jumps(text: &mut String, saved: &SavedTable<'_>, chosen: impl Fn(&str) -> bool) {
    for (chain, rule, target) in saved.jumps_to_ours() {
        if chosen(target) {
            let _infallible = writeln!(text, "-D {chain} {rule}");
        }
    }
}

/// Empties all before deleting any: one may be the target of another.
fn drop_chains(text: &mut String, names: &[&str]) {
    for name in names {
        let _infallible = writeln!(text, "-F {name}");
    }
    for name in names {
        let _infallible = writeln!(text, "-X {name}");
    }
}

#[cfg(test)]
mod tests;
