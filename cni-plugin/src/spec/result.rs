//! `prevResult`: what the plugins before made, printed back as it came.

use std::net::IpAddr;

use adit_proto::cni::Code;
use serde_json::{Map, Value};

use super::{Error, line};

/// From this version on an address of a result has no `version` of its own; before, it must have one.
const WITHOUT_IP_VERSION: &str = "1.0.0";

/// The result of the plugins before, in the version that was asked for. Keys that nobody knows are kept.
#[derive(Debug)]
pub(crate) struct PrevResult {
    version: &'static str,
    object: Map<String, Value>,
}

impl PrevResult {
    pub(super) fn new(version: &'static str, mut object: Map<String, Value>) -> Self {
        object.insert("cniVersion".into(), version.into());
        for ip in object.get_mut("ips").and_then(Value::as_array_mut).into_iter().flatten() {
            let family = family(ip);
            let Some(ip) = ip.as_object_mut() else { continue };
            match family {
                _ if version >= WITHOUT_IP_VERSION => {
                    ip.remove("version");
                }
                Some(family) => {
                    ip.insert("version".into(), family.into());
                }
                None => {}
            }
        }
        Self { version, object }
    }

    /// What ADD prints.
    pub(crate) fn print(&self) -> String {
        debug_assert_eq!(self.object.get("cniVersion"), Some(&Value::from(self.version)));
        line(&Value::Object(self.object.clone()))
    }

    /// The addresses of the sandbox: those whose interface has one, or that name no interface.
    ///
    /// Error 7 where the list has something that is no address.
    pub(crate) fn ips(&self) -> Result<Vec<IpAddr>, Error> {
        let Some(ips) = self.object.get("ips") else {
            return Ok(Vec::new());
        };
        let items = ips.as_array().ok_or_else(|| malformed("ips", ips))?;
        let mut found = Vec::with_capacity(items.len());
        for item in items {
            let address = address(item).ok_or_else(|| malformed("ips[].address", item))?;
            if self.in_sandbox(item) {
                found.push(address);
            }
        }
        Ok(found)
    }

    fn in_sandbox(&self, ip: &Value) -> bool {
        let interface = ip
            .get("interface")
            .and_then(Value::as_u64)
            .and_then(|index| usize::try_from(index).ok())
            .and_then(|index| self.object.get("interfaces")?.get(index));
        match interface {
            Some(interface) => {
                interface.get("sandbox").and_then(Value::as_str).is_some_and(|path| !path.is_empty())
            }
            None => true,
        }
    }
}

fn family(ip: &Value) -> Option<&'static str> {
    address(ip).map(|address| if address.is_ipv4() { "4" } else { "6" })
}

/// The address of `{"address": "10.0.0.7/24"}`.
fn address(ip: &Value) -> Option<IpAddr> {
    let (address, _prefix) = ip.get("address")?.as_str()?.split_once('/')?;
    address.parse().ok()
}

fn malformed(key: &str, found: &Value) -> Error {
    Error::new(Code::InvalidConfig, "prevResult is not a result of CNI", format!("prevResult.{key}: {found}"))
}
