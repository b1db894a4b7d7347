//! Reads the text of `iptables-save`, of either back end. Total: a line that is not understood is passed over, since
//! it is not ours.

use super::model::Table;
use super::rules::{Chain, PREFIX};

/// What stands in a namespace, for one family.
pub(super) struct Save<'s> {
    tables: Vec<(&'s str, SavedTable<'s>)>,
}

/// What stands in one table.
#[derive(Clone, Default)]
pub(super) struct SavedTable<'s> {
    /// (name, policy): `-` is the policy of a chain that somebody made.
    chains: Vec<(&'s str, &'s str)>,
    /// (chain, rule without `-A CHAIN`), in order.
    rules: Vec<(&'s str, &'s str)>,
}

impl<'s> Save<'s> {
    pub(super) fn parse(text: &'s str) -> Self {
        let mut tables: Vec<(&str, SavedTable<'_>)> = Vec::new();
        for line in text.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix('*') {
                tables.push((name, SavedTable::default()));
                continue;
            }
            let Some((_, table)) = tables.last_mut() else {
                continue;
            };
            if let Some(chain) = line.strip_prefix(':') {
                let mut words = chain.split_whitespace();
                if let (Some(name), Some(policy)) = (words.next(), words.next()) {
                    table.chains.push((name, policy));
                }
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let (chain, rule) = rule.split_once(' ').unwrap_or((rule, ""));
                table.rules.push((chain, rule.trim()));
            }
        }
        Self { tables }
    }

    /// A table; empty if it is not there.
    pub(super) fn table(&self, table: Table) -> SavedTable<'s> {
        let found = self.tables.iter().find(|(name, _)| *name == table.name());
        found.map_or_else(SavedTable::default, |(_, saved)| saved.clone())
    }

    pub(super) fn holds_others(&self) -> bool {
        self.tables.iter().any(|(_, table)| table.holds_others())
    }
}

impl<'s> SavedTable<'s> {
    /// The chains that have our prefix.
    pub(super) fn own_chains(&self) -> Vec<&'s str> {
        self.chains.iter().map(|(name, _)| *name).filter(|name| name.starts_with(PREFIX)).collect()
    }

    /// The rules in others' chains that lead into ours: (chain, rule, our chain).
    pub(super) fn jumps_to_ours(&self) -> Vec<(&'s str, &'s str, &'s str)> {
        let foreign = self.rules.iter().filter(|(chain, _)| !chain.starts_with(PREFIX));
        foreign
            .filter_map(|(chain, rule)| {
                let target = target(rule)?;
                target.starts_with(PREFIX).then_some((*chain, *rule, target))
            })
            .collect()
    }

    /// Whether exactly one rule leads into `chain`, and is its hook's first, without a condition.
    pub(super) fn jump_is_right(&self, chain: &Chain) -> bool {
        let jumps = self.jumps_to_ours();
        let mut to_it = jumps.iter().filter(|(_, _, target)| *target == chain.name);
        let only = to_it.next().is_some() && to_it.next().is_none();
        let first = self.rules.iter().find(|(name, _)| *name == chain.hook);
        only && first.is_some_and(|(_, rule)| *rule == format!("-j {}", chain.name))
    }

    /// Whether `chain` holds its rules and no other, in order.
    pub(super) fn rules_are(&self, chain: &Chain) -> bool {
        let stands = self.chains.iter().any(|(name, _)| *name == chain.name);
        let rules: Vec<&str> =
            self.rules.iter().filter(|(name, _)| *name == chain.name).map(|(_, rule)| *rule).collect();
        stands
            && rules.len() == chain.rules.len()
            && rules.iter().zip(&chain.rules).all(|(saved, wanted)| canonical(saved) == canonical(wanted))
    }

    /// Whether somebody else made a chain, wrote a rule, or changed a policy.
    pub(super) fn holds_others(&self) -> bool {
        let others_rule = |(chain, rule): &(&str, &str)| {
            !chain.starts_with(PREFIX) && !target(rule).is_some_and(|target| target.starts_with(PREFIX))
        };
        let others_chain = |(name, policy): &(&str, &str)| !name.starts_with(PREFIX) && *policy != "ACCEPT";
        self.rules.iter().any(others_rule) || self.chains.iter().any(others_chain)
    }
}

/// Where a rule jumps or goes.
fn target(rule: &str) -> Option<&str> {
    let mut words = words(rule);
    words.find(|word| matches!(*word, "-j" | "-g" | "--jump" | "--goto"))?;
    words.next()
}

/// The words of a rule; what stands in quotes (a comment may hold anything) is one word, with its quotes.
fn words(rule: &str) -> impl Iterator<Item = &str> {
    let mut rest = rule;
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        if rest.is_empty() {
            return None;
        }
        let (mut quoted, mut escaped) = (false, false);
        let ends = |(_, letter): &(usize, char)| {
            let end = !quoted && letter.is_whitespace();
            quoted ^= *letter == '"' && !escaped;
            escaped = *letter == '\\' && !escaped;
            end
        };
        let end = rest.char_indices().find(ends).map_or(rest.len(), |(at, _)| at);
        let (word, after) = rest.split_at(end);
        rest = after;
        Some(word)
    })
}

/// A rule without what versions and back ends print differently: order of the matches, a full mask, the case and
/// leading zeros of hexadecimal numbers.
fn canonical(rule: &str) -> Vec<String> {
    let mut options: Vec<String> = Vec::new();
    let mut negated = false;
    for word in words(rule) {
        if word == "!" {
            negated = true;
        } else if word.starts_with('-') || options.is_empty() {
            options.push(if std::mem::take(&mut negated) { format!("! {word}") } else { word.to_owned() });
        } else if let Some(option) = options.last_mut() {
            option.push(' ');
            option.push_str(&value(word));
        }
    }
    options.sort();
    options.dedup();
    options
}

fn value(word: &str) -> String {
    let (number, mask) = word.split_once('/').unwrap_or((word, ""));
    let hex = |text: &str| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    match (hex(number), hex(mask)) {
        (Some(number), Some(u32::MAX)) => format!("{number:#x}"),
        (Some(number), Some(mask)) => format!("{number:#x}/{mask:#x}"),
        (Some(number), None) if mask.is_empty() => format!("{number:#x}"),
        _ => word.to_owned(),
    }
}
