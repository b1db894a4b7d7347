//! Real servers in pods: nginx, Redis, PostgreSQL. Each with its configuration and files on the sandbox's tmpfs.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use crate::process::{Process, Run};
use crate::sandbox::Sandbox;
use crate::topology::Host;

/// An nginx that answers every request on `port`, of both families, with 200 and this one-line body.
pub fn nginx(host: &Host, port: u16, body: &str) -> Result<Process> {
    let location = format!("location / {{ default_type text/plain; return 200 \"{body}\\n\"; }}");
    nginx_with(host, &format!("listen {port} backlog=4096; listen [::]:{port} backlog=4096; {location}"))
}

/// An nginx with this text inside its one `server` block.
pub fn nginx_with(host: &Host, server: &str) -> Result<Process> {
    let folder = folder(host, "nginx")?;
    // All paths are below the folder: nginx's own defaults lie where only a package's installation may write.
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {kind};\n"))
        .concat();
    let text = format!(
        "daemon off;\nuser root;\npid nginx.pid;\nworker_processes 1;\nerror_log stderr notice;\n\
         events {{ worker_connections 16384; }}\n\
         http {{\naccess_log off;\nkeepalive_requests 1000000000;\n{temporary}server {{\n{server}\n}}\n}}\n"
    );
    let config = folder.join("nginx.conf");
    fs::write(&config, text).context("nginx's configuration")?;
    let run = host.netns.command("nginx").args(["-e", "stderr", "-p"]).args([&folder]).args(["-c"]);
    let process = run.args([&config]).spawn()?;
    process.wait_for_line("nginx's word that it serves", |line| line.contains("start worker process "))?;
    Ok(process)
}

/// A Redis without persistence.
pub fn redis(host: &Host, port: u16) -> Result<Process> {
    let folder = folder(host, "redis")?;
    let port = port.to_string();
    let args = ["--port", &port, "--bind", "*", "-::*", "--save", "", "--protected-mode", "no", "--dir"];
    let process = host.netns.command("redis-server").args(args).args([&folder]).spawn()?;
    process
        .wait_for_line("Redis' word that it serves", |line| line.contains("Ready to accept connections"))?;
    Ok(process)
}

/// Whom PostgreSQL runs as, since it refuses root: `nobody` of Debian.
const NOBODY: u32 = 65_534;

/// A PostgreSQL whose user `test` needs no password. Needs real root, to become another user.
pub fn postgres(host: &Host, port: u16) -> Result<Process> {
    let folder = folder(host, "postgres")?;
    let data = folder.join("data");
    Run::here("cp").args(["-a"]).args([&postgres_template()?, &data]).ok()?;
    chown(&folder, Some(NOBODY), Some(NOBODY)).context("PostgreSQL's folder")?;
    let run = host.netns.command("postgres").user(NOBODY, NOBODY).args(["-D"]).args([&data]);
    let run = run.args(["-p", &port.to_string(), "-c", "listen_addresses=*", "-c", "fsync=off", "-k"]);
    let process = run.args([&folder]).spawn()?;
    let serves = "database system is ready to accept connections";
    process.wait_for_line("PostgreSQL's word that it serves", |line| line.contains(serves))?;
    Ok(process)
}

/// An empty database cluster, made once in a sandbox: initdb takes a second.
fn postgres_template() -> Result<PathBuf> {
    static MADE: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(template) = &*made {
        return Ok(template.clone());
    }
    let folder = Sandbox::folder().join("postgres-template");
    fs::create_dir_all(&folder).context("PostgreSQL's template")?;
    chown(&folder, Some(NOBODY), Some(NOBODY)).context("PostgreSQL's template")?;
    let data = folder.join("data");
    let run = Run::here("initdb").user(NOBODY, NOBODY).args(["--no-sync", "-A", "trust", "-U", "test", "-D"]);
    run.args([&data]).ok()?;
    let everybody = "local all all trust\nhost all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n";
    fs::write(data.join("pg_hba.conf"), everybody).context("pg_hba.conf")?;
    Ok(made.insert(data).clone())
}

fn folder(host: &Host, server: &str) -> Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder: &Path = Sandbox::folder();
    let folder = folder.join(format!("{server}-{}-{number}", host.netns.name()));
    fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}
