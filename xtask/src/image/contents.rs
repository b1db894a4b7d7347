//! What is in each image.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;

use super::debian;
use super::root::Root;
use super::sbom::{self, Crate};
use crate::oci::Entry;
use crate::repo;

/// What an image is made of.
pub(super) struct Contents {
    /// Its name.
    pub(super) title: &'static str,
    /// What it is, in a sentence.
    pub(super) description: &'static str,
    /// What is started.
    pub(super) program: &'static str,
    /// `UID:GID`, or empty for root.
    pub(super) user: &'static str,
    /// Its root file system, but for the libraries.
    pub(super) root: Root,
    /// What is compiled into our programs.
    pub(super) crates: BTreeSet<Crate>,
    /// The most bytes that its archive may have.
    pub(super) len_max: u64,
}

const AGENT: &str = "/usr/bin/adit-agent";
const CA: &str = "/usr/bin/adit-ca";
const APP: &str = "/usr/bin/app";
const LICENCE: &str = "usr/share/doc/adit/LICENSE";
/// Nobody in particular, as in other images without a shell.
const NOBODY: &str = "65532:65532";

/// The agent, the CNI plugin that it installs, and iptables with both of its back ends.
pub(super) fn agent(programs: &Path) -> Result<Contents> {
    let mut root = ours(Root::of(debian::fetch(&["iptables", "libc6", "libgcc-s1"])?));
    root.take("iptables", |path| {
        let name = path.rsplit('/').next().unwrap_or_default();
        let is_program = path.starts_with("usr/sbin/")
            && (name.starts_with("xtables-") && name.ends_with("-multi")
                || (name.starts_with("iptables-") || name.starts_with("ip6tables-"))
                    && (name.contains("-nft") || name.contains("-legacy")));
        let is_match = path.contains("/xtables/")
            && ["libxt_", "libipt_", "libip6t_"].iter().any(|kind| name.starts_with(kind));
        is_program || is_match
    })?;
    root.program(&AGENT[1..], &programs.join("adit-agent"));
    root.program("usr/bin/adit-cni", &programs.join("adit-cni"));
    Ok(Contents {
        title: "adit-agent",
        description: "Adit's node agent, and its CNI plugin",
        program: AGENT,
        user: "",
        root,
        crates: sbom::crates(&["adit-agent", "adit-cni"])?,
        len_max: 60_000_000,
    })
}

/// The certificate authority.
pub(super) fn ca(programs: &Path) -> Result<Contents> {
    let mut root = ours(Root::of(debian::fetch(&["libc6", "libgcc-s1"])?));
    root.program(&CA[1..], &programs.join("adit-ca"));
    Ok(Contents {
        title: "adit-ca",
        description: "Adit's certificate authority",
        program: CA,
        user: NOBODY,
        root,
        crates: sbom::crates(&["adit-ca"])?,
        len_max: 25_000_000,
    })
}

/// Applications for tests: servers and clients that people run, and our own that count what they send. With a shell.
pub(super) fn apps(programs: &Path) -> Result<Contents> {
    let packages = ["busybox-static", "curl", "libc6", "libgcc-s1", "nginx", "redis-server", "redis-tools"];
    let mut root = ours(Root::of(debian::fetch(&packages)?));
    root.take("busybox-static", |path| path == "usr/bin/busybox")?;
    for name in
        ["sh", "sleep", "cat", "nc", "wget", "ip", "ls", "ps", "env", "id", "kill", "true", "head", "grep"]
    {
        root.put(&format!("usr/bin/{name}"), Entry::Link("busybox".into()));
    }
    root.take("curl", |path| path == "usr/bin/curl")?;
    root.take("nginx", |path| path == "usr/sbin/nginx")?;
    root.take("redis-server", |path| path.starts_with("usr/bin/"))?;
    root.take("redis-tools", |path| ["usr/bin/redis-cli", "usr/bin/redis-check-rdb"].contains(&path))?;
    root.put("etc/nginx/nginx.conf", text(NGINX));
    root.put("var/log/nginx", Entry::Folder { mode: 0o777 });
    root.put("var/lib/nginx", Entry::Folder { mode: 0o777 });
    root.program(&APP[1..], &programs.join("app"));
    Ok(Contents {
        title: "adit-test-apps",
        description: "Applications for Adit's tests",
        program: APP,
        user: "",
        root,
        crates: sbom::crates(&["adit-tests"])?,
        len_max: 60_000_000,
    })
}

/// As few processes as there can be; it says which pod it is.
const NGINX: &str = "\
daemon off;
worker_processes 1;
error_log stderr;
pid /tmp/nginx.pid;
env HOSTNAME;
events {}
http {
  access_log off;
  client_body_temp_path /tmp/body;
  proxy_temp_path /tmp/proxy;
  fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi;
  scgi_temp_path /tmp/scgi;
  server {
    listen 8080;
    listen [::]:8080;
    location / { return 200 \"$hostname from $remote_addr\\n\"; }
  }
}
";

/// With what every image has.
fn ours(mut root: Root) -> Root {
    root.put(LICENCE, Entry::File { from: repo::root().join("LICENSE"), mode: 0o644 });
    // Where the runtime says that namespaces of pods are: /var/run/netns.
    root.put("run", Entry::Folder { mode: 0o755 });
    root.put("var/run", Entry::Link("/run".into()));
    // What the C library asks for names by.
    root.put("etc/nsswitch.conf", text("hosts: files dns\n"));
    root.put(
        "etc/passwd",
        text("root:x:0:0:root:/:/sbin/nologin\nnobody:x:65532:65532:nobody:/:/sbin/nologin\n"),
    );
    root.put("etc/group", text("root:x:0:\nnogroup:x:65532:\n"));
    root.put("tmp", Entry::Folder { mode: 0o1777 });
    root
}

fn text(text: &str) -> Entry {
    Entry::Bytes { bytes: text.as_bytes().to_vec(), mode: 0o644 }
}
