//! The DaemonSet's work on a real host: what its pod's script installs, replaces and removes; and its manifests.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::Value;

use crate::bed::{self, Bed};
use crate::deploy_binary;
use crate::deploy_host::Host;

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");

/// What the Dockerfile's last stage copies out of `deploy`.
fn copied() -> Vec<String> {
    let dockerfile = fs::read_to_string(format!("{DEPLOY}/Dockerfile")).unwrap();
    let mut copies = dockerfile
        .lines()
        .filter_map(|line| line.strip_prefix("COPY deploy/"));
    let line = copies.next_back().unwrap().strip_suffix(" /crfs/").unwrap();
    let files = format!("deploy/{line}");
    let names = files.split(' ').map(|name| name.strip_prefix("deploy/"));
    names.map(|name| name.unwrap().to_owned()).collect()
}

/// The pod as containerd would make it of the image: its files at `/pod`, the host's `/` at `/pod/host`.
fn make_pod(host: &Host, binary: &str) {
    for folder in ["usr", "host", "proc", "dev", "crfs"] {
        fs::create_dir_all(host.path("/root/pod").join(folder)).unwrap();
    }
    for link in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{link}"), host.path("/root/pod").join(link)).unwrap();
    }
    fs::copy(binary, host.path("/root/pod/crfs/crfs")).unwrap();
    for name in copied() {
        let to = host.path("/root/pod/crfs").join(&name);
        fs::copy(format!("{DEPLOY}/{name}"), to).unwrap();
    }
}

/// The line of shell that runs the pod with this argument.
fn pod(argument: &str) -> String {
    pod_in("/root/pod", "--mount", argument)
}

/// The same with the pod's files in that folder, and in what else it does not share with the host.
fn pod_in(folder: &str, unshared: &str, argument: &str) -> String {
    format!(
        "unshare {unshared} sh -ec 'cd {folder}; mount --bind /usr usr; mount --rbind / host; \
         mount --bind /proc proc; mount --bind /dev dev; exec chroot . /crfs/node.sh {argument}'"
    )
}

#[test]
fn a_pod_installs_crfs_on_its_node_replaces_it_and_removes_it() {
    let Some(binary) = deploy_binary::build() else {
        return;
    };
    let bed = Bed::up("", &["--no-crfs"]);
    let Some(host) = Host::boot("CRFS_BED_HOST", bed.folder().join("host")) else {
        return;
    };
    let image = bed.convert(&bed::image("numpy"), "numpy:lazy");
    host.start_containerd(&bed);
    make_pod(&host, &binary);
    host.refuses(&pod("ready"));

    let said = host.run(&pod("install"));
    assert!(
        said.contains("an image was pulled lazily and read"),
        "{said}"
    );
    host.run(&pod("ready"));
    host.run("crfs status && systemctl is-enabled crfs");
    let drop_in = host.path("/etc/containerd/conf.d/crfs.toml");
    let text = fs::read_to_string(&drop_in).unwrap();
    assert!(
        text.contains("snapshotter = \"crfs\""),
        "for pods too: {text}"
    );
    host.run(&format!(
        "ctr image pull --plain-http --snapshotter crfs {image} && mkdir /root/mounted && \
         ctr image mount --snapshotter crfs {image} /root/mounted"
    ));

    // Run again it changes nothing; with another binary and configuration it replaces the running one.
    let before = host.server();
    let said = host.run(&pod("install"));
    assert!(!said.contains("wrote") && host.server() == before, "{said}");
    let program = host.path("/root/pod/crfs/crfs");
    let mut bytes = fs::read(&program).unwrap();
    bytes.extend_from_slice(b"another");
    fs::remove_file(&program).unwrap();
    fs::write(&program, &bytes).unwrap();
    host.run("chmod 755 /root/pod/crfs/crfs; mkdir /root/pod/crfs-config");
    let config = host.path("/root/pod/crfs-config/config.toml");
    fs::write(&config, "[log]\nlevel = \"nonsense,,\"\n[cash]\n").unwrap();
    let said = host.refuses(&pod("install"));
    assert!(said.contains("cash") && host.server() == before, "{said}");
    fs::write(&config, "[log]\nlevel = \"debug\"\n").unwrap();
    host.run(&pod("install"));
    assert_ne!(host.server(), before);
    let status = host.run("crfs status");
    assert!(
        status.contains("0 lost") && !status.contains(" 0 taken over"),
        "{status}"
    );
    host.run("find /root/mounted -xdev -type f | head -n 300 | xargs -d '\\n' cat | wc -c");
    assert_eq!(host.run("ls /usr/local/lib/crfs | wc -l").trim(), "3");

    restarts_for_another_configuration(&host, &config);

    // New containers do without at once; the rest waits for those that are there.
    let said = host.refuses(&pod("uninstall"));
    assert!(
        said.contains("/root/mounted") && said.contains("kubectl drain"),
        "{said}"
    );
    assert!(!drop_in.exists());
    host.run("ls /root/mounted && crfs status && ctr version");
    let said = host.refuses("ctr snapshot --snapshotter crfs ls");
    assert!(said.contains("crfs"), "{said}");
    host.run("umount /root/mounted");
    goes_though_it_stands_on_crfs(&host);
    host.refuses("grep -E ' - fuse[. ]|/var/lib/crfs' /proc/self/mountinfo");
    host.refuses("test -e /etc/containerd/config.toml");
    host.run("ctr version");
    assert_eq!(host.traces(), "");
    assert_eq!(host.run("systemctl --failed --plain --no-legend"), "");
    host.run(&pod("uninstall"));
}

/// A configuration that has changed alone holds too, also what no reload brings; the mount goes on.
fn restarts_for_another_configuration(host: &Host, config: &Path) {
    let before = host.server();
    let metrics = "[metrics]\naddress = \"unix:/run/crfs/metrics.sock\"\n";
    fs::write(config, metrics).unwrap();
    let said = host.run(&pod("install"));
    assert!(said.contains("wrote /etc/crfs/config.toml"), "{said}");
    let after = host.server();
    assert_ne!(after, before);
    host.run("timeout 20 sh -c 'until test -S /run/crfs/metrics.sock; do sleep 0.1; done'");
    host.run("ls /root/mounted && ! test -e /etc/crfs/config.toml.new");
    host.run(&pod("install"));
    assert_eq!(host.server(), after, "the same again");
}

/// A pod may itself stand on crfs, from before; that does not count, and it ends well though its files go.
fn goes_though_it_stands_on_crfs(host: &Host) {
    host.run(
        "cd /var/lib/crfs && mkdir -p own/up own/work /root/own && \
         mount -t overlay own -o lowerdir=/root/pod,upperdir=$PWD/own/up,workdir=$PWD/own/work /root/own",
    );
    let said = host.refuses(&pod("uninstall"));
    assert!(said.contains("/root/own"), "another's: {said}");
    let said = host.run(&pod_in("/root/own", "--mount --net", "uninstall"));
    assert!(said.contains("removed"), "{said}");
    host.run("umount /root/own");
}

fn manifest(name: &str) -> Value {
    let text = fs::read_to_string(format!("{DEPLOY}/{name}")).unwrap();
    serde_saphyr::from_str(&text).unwrap()
}

/// Whether the value has this at this place.
fn holds(manifest: &Value, place: &str, value: &str) {
    let found = manifest.pointer(place);
    assert_eq!(
        found,
        Some(&serde_json::from_str(value).unwrap()),
        "{place}"
    );
}

#[test]
fn the_manifests_run_the_script_as_it_wants_to_be_run() {
    let script = fs::read_to_string(format!("{DEPLOY}/node.sh")).unwrap();
    for (name, job) in [
        ("daemonset.yaml", "install"),
        ("uninstall.yaml", "uninstall"),
    ] {
        let manifest = manifest(name);
        holds(&manifest, "/apiVersion", "\"apps/v1\"");
        holds(&manifest, "/kind", "\"DaemonSet\"");
        let labels = manifest.pointer("/spec/template/metadata/labels");
        assert_eq!(labels, manifest.pointer("/spec/selector/matchLabels"));
        let pod = &manifest["spec"]["template"]["spec"];
        holds(pod, "/hostPID", "true");
        holds(pod, "/automountServiceAccountToken", "false");
        holds(pod, "/initContainers/0/args", &format!("[\"{job}\"]"));
        holds(
            pod,
            "/initContainers/0/securityContext",
            "{\"privileged\": true}",
        );
        holds(pod, "/containers/0/args", "[\"stay\"]");
        let kept = pod.pointer("/containers/0/volumeMounts");
        assert_eq!(kept, None, "it would hold the node's mounts");
        let volumes = pod["volumes"].as_array().unwrap();
        for container in ["initContainers", "containers"].map(|kind| &pod[kind][0]) {
            let job = container["args"][0].as_str().unwrap();
            assert!(script.contains(&format!("\n{job})")), "{job}");
            assert_eq!(container["image"], pod["containers"][0]["image"]);
            for mount in container["volumeMounts"].as_array().into_iter().flatten() {
                let path = mount["mountPath"].as_str().unwrap();
                assert!(script.contains(path), "{path}");
                assert!(volumes.iter().any(|volume| volume["name"] == mount["name"]));
            }
        }
    }
    let install = manifest("daemonset.yaml");
    let probe = "/spec/template/spec/containers/0/readinessProbe/exec/command";
    holds(&install, probe, "[\"/crfs/node.sh\", \"ready\"]");
    let copied = copied();
    for name in [
        "node.sh",
        "leave.sh",
        "crfs.service",
        "preserve.conf",
        "config.toml",
    ] {
        assert!(copied.iter().any(|copied| copied == name), "{name}");
    }
}
