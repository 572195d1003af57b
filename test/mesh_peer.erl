%%% Peers of the tests: separate OS processes, built from native/mesh/examples/peer, which ends
%%% when the port to it closes. Each handle is a process that owns the port.
-module(mesh_peer).

-export([start/0, start/1, stop/1, kill/1, command/2, port/1, address/1, os_pid/1]).
-export([stats/1, wait/3, wait/4, node_id/1, frame/2, silent/0]).

-export_type([peer/0]).

-opaque peer() :: #{owner := pid(), port := inet:port_number(), os_pid := non_neg_integer()}.

-define(START_MS, 10_000).
-define(COMMAND_MS, 60_000).
-define(MAX_LINE, 1_048_576).

%% An ordinary peer: it counts what it gets.
start() -> start([]).

%% `Args' are those of the peer program, as strings.
start(Args) ->
    Self = self(),
    {Owner, Monitor} = spawn_monitor(fun() -> own(Self, Args) end),
    receive
        {Owner, ready, Port, OsPid} ->
            demonitor(Monitor, [flush]),
            #{owner => Owner, port => Port, os_pid => OsPid};
        {'DOWN', Monitor, process, Owner, Reason} ->
            error({peer_did_not_start, Reason})
    after ?START_MS ->
        error(peer_did_not_start)
    end.

%% Ends in order: closes its connections, then exits.
stop(#{owner := Owner}) ->
    end_owner(Owner, stop).

%% Ends as a power cut would: nobody is told.
kill(#{owner := Owner, os_pid := OsPid}) ->
    _ = os:cmd("kill -9 " ++ integer_to_list(OsPid)),
    end_owner(Owner, stop).

port(#{port := Port}) -> Port.

os_pid(#{os_pid := OsPid}) -> OsPid.

address(#{port := Port}) -> {{127, 0, 0, 1}, Port}.

%% The peer's answer to one command line.
command(#{owner := Owner}, Line) ->
    Monitor = monitor(process, Owner),
    Owner ! {command, self(), Monitor, Line},
    receive
        {Monitor, Answer} ->
            demonitor(Monitor, [flush]),
            Answer;
        {'DOWN', Monitor, process, Owner, Reason} ->
            error({peer_is_gone, Reason})
    after ?COMMAND_MS ->
        error({no_answer, Line})
    end.

stats(Peer) ->
    {stats, Stats} = command(Peer, "stats"),
    Stats.

%% Waits until counter `Field' is at least `Least', and returns all counters.
wait(Peer, Field, Least) -> wait(Peer, Field, Least, 30_000).

wait(Peer, Field, Least, Ms) ->
    case command(Peer, io_lib:format("wait ~s ~b ~b", [Field, Least, Ms])) of
        {stats, Stats} -> Stats;
        {timeout, Stats} -> error({never_reached, Field, Least, Stats})
    end.

%% A node id of 32 bytes, as in the field.
node_id(N) -> <<N:256>>.

%% A protocol frame whose payload has `Size' bytes (8 at least), which a peer can check: its index,
%% then bytes that follow from it.
frame(Index, Size) when Size >= 8 ->
    Cycle = list_to_binary([(Index + I) band 255 || I <- lists:seq(0, 255)]),
    Fill = Size - 8,
    Filling = binary:part(binary:copy(Cycle, Fill div 256 + 1), 0, Fill),
    <<1, 1, 0, 0, Size:32, Index:64, Filling/binary>>.

%% A socket that never answers, and its address; it closes with the calling process.
silent() ->
    {ok, Socket} = gen_udp:open(0, [binary, {ip, {127, 0, 0, 1}}, {active, false}]),
    {ok, Port} = inet:port(Socket),
    {{127, 0, 0, 1}, Port}.

end_owner(Owner, Message) ->
    Monitor = monitor(process, Owner),
    Owner ! Message,
    receive
        {'DOWN', Monitor, process, Owner, _} -> ok
    after ?START_MS ->
        error(peer_does_not_end)
    end.

own(Starter, Args) ->
    Monitor = monitor(process, Starter),
    Program = os:getenv("MACULA_PEER"),
    %% The Makefile's target test-erlang builds the program and sets this.
    Program =/= false orelse exit('MACULA_PEER_is_not_set'),
    Options = [{args, Args}, {line, ?MAX_LINE}, binary, exit_status, use_stdio],
    Port = open_port({spawn_executable, Program}, Options),
    {os_pid, OsPid} = erlang:port_info(Port, os_pid),
    {ready, Number} = answer(Port, ?START_MS),
    Starter ! {self(), ready, Number, OsPid},
    serve(Port, Monitor).

serve(Port, Monitor) ->
    receive
        {command, From, Ref, Line} ->
            true = port_command(Port, [Line, $\n]),
            From ! {Ref, answer(Port, ?COMMAND_MS)},
            serve(Port, Monitor);
        stop ->
            finish(Port);
        {'DOWN', Monitor, process, _, _} ->
            finish(Port);
        {Port, {exit_status, _}} ->
            ok
    end.

%% The program quits by itself when told so; one that was killed has gone already.
finish(Port) ->
    try port_command(Port, "quit\n") of
        true -> await_exit(Port)
    catch
        error:badarg -> ok
    end.

await_exit(Port) ->
    receive
        {Port, {exit_status, _}} -> ok;
        {Port, {data, _}} -> await_exit(Port)
    after ?START_MS ->
        exit(peer_does_not_exit)
    end.

answer(Port, Ms) ->
    receive
        {Port, {data, {eol, Line}}} ->
            {ok, Tokens, _} = erl_scan:string(binary_to_list(Line)),
            {ok, Term} = erl_parse:parse_term(Tokens),
            Term;
        {Port, {exit_status, Status}} ->
            exit({peer_exited, Status})
    after Ms ->
        exit(peer_is_silent)
    end.
