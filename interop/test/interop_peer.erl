%%% Peers on QUIC stacks that are not ours, each a program that answers lines with Erlang terms
%%% (interop/README.md) and ends when the port to it closes. A peer belongs to the process that
%%% starts it.
-module(interop_peer).

-export([start/2, stop/1, port/1, command/2, ask/2, await/2, wait/3, stats/1]).

-define(START_MS, 20_000).
-define(STOP_MS, 10_000).
%% Longer than any one command may take in a peer.
-define(ANSWER_MS, 150_000).
-define(WAIT_MS, 60_000).
-define(MAX_LINE, 65_536).

%% `Program' is an executable and its first arguments, `Args' those that the stack is not told by.
start([Executable | First], Args) ->
    Options = [{args, First ++ Args}, {line, ?MAX_LINE}, binary, exit_status, use_stdio],
    Port = open_port({spawn_executable, Executable}, Options),
    {ready, Number} = mesh_program:answer(Port, ?START_MS),
    {Port, Number}.

stop({Port, _Number}) ->
    try port_command(Port, "quit\n") of
        true ->
            _ = mesh_program:await_exit(Port, ?STOP_MS),
            ok
    catch
        error:badarg -> ok
    end.

%% Where it listens, on loopback.
port({_Port, Number}) -> Number.

%% The peer's answer to one command line.
command(Peer, Line) ->
    ok = ask(Peer, Line),
    await(Peer, ?ANSWER_MS).

%% As command/2, but the answer is left to await/2.
ask({Port, _Number}, Line) ->
    true = port_command(Port, [Line, $\n]),
    ok.

await({Port, _Number}, Ms) -> mesh_program:answer(Port, Ms).

%% Waits until counter `Field' is at least `Least', and returns all counters.
wait(Peer, Field, Least) ->
    case command(Peer, io_lib:format("wait ~s ~b ~b", [Field, Least, ?WAIT_MS])) of
        {stats, Stats} -> Stats;
        {timeout, Stats} -> error({never_reached, Field, Least, Stats})
    end.

stats(Peer) ->
    {stats, Stats} = command(Peer, "stats"),
    Stats.
