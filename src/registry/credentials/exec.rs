//! Running a helper program: question on stdin, answer on stdout, never longer than allowed.

use std::ffi::OsStr;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

/// The longest answer that is read, in bytes; what follows is not.
pub(super) const MAX_ANSWER: u64 = 1 << 20;
/// The most that is kept of what a program complains about, in bytes.
const MAX_COMPLAINT: u64 = 4 << 10;

/// What a program said.
pub(super) struct Said {
    /// Whether it ended with status 0.
    pub(super) ok: bool,
    /// Its standard output.
    pub(super) output: Vec<u8>,
    /// The start of its standard error, on one line.
    pub(super) complaint: String,
}

/// Runs `program` in crfs's environment with `env` added. Dropped or out of time, it is killed.
///
/// # Errors
/// It cannot be started, or gave no answer in time; worded for a message.
pub(super) async fn run(
    program: &OsStr,
    args: &[&str],
    env: &[(&str, &str)],
    question: &[u8],
    timeout: Duration,
) -> Result<Said, String> {
    let talk = async {
        let mut child = Command::new(program)
            .args(args)
            .envs(env.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let ask = async {
            if let Some(mut stdin) = stdin {
                // A program that knows its answer need not read the question.
                let _ = stdin.write_all(question).await;
            }
        };
        let ((), output, complaint) =
            tokio::join!(ask, read(stdout, MAX_ANSWER), read(stderr, MAX_COMPLAINT));
        let complaint = String::from_utf8_lossy(&complaint?).trim().to_owned();
        Ok::<_, std::io::Error>(Said {
            output: output?,
            complaint: complaint.replace('\n', " "),
            ok: child.wait().await?.success(),
        })
    };
    tokio::time::timeout(timeout, talk)
        .await
        .map_err(|_| format!("no answer within {timeout:?}"))?
        .map_err(|error| error.to_string())
}

async fn read(from: Option<impl AsyncRead + Unpin>, max: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        (&mut from).take(max).read_to_end(&mut bytes).await?;
        // A program that has more to say must not hang on a full pipe.
        tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    }
    Ok(bytes)
}
