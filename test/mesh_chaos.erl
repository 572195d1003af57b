%%% A storm over a pool in another VM: nodes of several kinds, the faults that befall them, made
%%% from a seed, and what must be true once it is over. The evidence is outside the pool: each node
%%% appends the number of each whole message to a file, which outlives it.
-module(mesh_chaos).

-export([with/2, act/2]).

-include_lib("stdlib/include/assert.hrl").

-define(POOL, macula_gateway_mesh).
-define(LIMIT, 4).
-define(CALLERS, 8).
-define(NAME, "storm.macula.test").
%% Between two strikes.
-define(PACE_MS, 250).
%% What a node's transport acknowledged so near to its end, its application may not have read.
-define(GRACE_MS, 3_000).
%% What may be left of a storm in the VM's memory, in caches of its allocators.
-define(MEMORY_KIB, 96 * 1_024).
-define(OPTIONS, #{
    max_mesh_connections => ?LIMIT,
    linger_ms => 500,
    connect_timeout_ms => 1_500,
    idle_timeout_ms => 2_500,
    keep_alive_interval_ms => 500,
    queue_max_messages => 500,
    runtime_workers => 2
}).
-define(CALL_MS, 60_000).
-define(LISTENER, #{idle_timeout_ms => 2_500, keep_alive_interval_ms => 500}).

%%% The stage

%% Runs `Test(Chaos)' with a VM for the pool, and nodes around it. Names change in a mount namespace
%% of the VM's own, where this machine allows one.
with(Dir, Test) ->
    Hosts = filename:join(Dir, "hosts"),
    ok = name_is({127, 0, 0, 1}, Hosts),
    HasNames = os:cmd("unshare --mount true 2>&1 && echo yes") =:= "yes\n",
    HasNames orelse ct:pal("no mount namespaces here: names will not change"),
    mesh_vm:with(#{}, fun(Listener) ->
        {CertFile, KeyFile} = quic_certs:self_signed(filename:join(Dir, "listener")),
        Listen = [CertFile, KeyFile, log(Dir, listener), ?LISTENER],
        Port = peer:call(Listener, mesh_callers, listen, Listen, ?CALL_MS),
        Chaos = #{
            dir => Dir,
            listener => Listener,
            hosts => Hosts,
            faults => faults(HasNames),
            number => 1,
            ends => [],
            base => none,
            ports => #{listener => Port},
            peers => #{},
            relays => #{}
        },
        mesh_vm:with(exec(HasNames, Hosts), fun(Vm) -> begin_test(Chaos, Vm, HasNames, Test) end)
    end).

begin_test(Chaos, Vm, HasNames, Test) ->
    try
        Test(build(Chaos#{vm => Vm}, HasNames))
    after
        %% Peers and relays end with this process.
        ok = signal("CONT", Vm)
    end.

%% In a namespace, the VM sees our file in place of the system's names.
exec(false, _Hosts) ->
    #{};
exec(true, Hosts) ->
    Script = "mount --bind \"$0\" /etc/hosts && exec erl \"$@\"",
    #{exec => {os:find_executable("unshare"), ["--mount", "sh", "-c", Script, Hosts]}}.

%% Peers on their own, behind a relay, and behind a name that has two addresses in turn; and
%% the listener in a VM of its own, behind a relay, which alone speaks `macula-mesh/1'.
build(Chaos, HasNames) ->
    Nodes = [mortal, other, relayed, shaky] ++ [Name || HasNames, Name <- [named, named_too]],
    Peopled = lists:foldl(fun start_peer/2, Chaos, Nodes),
    #{ports := Ports} = Peopled,
    Relays = maps:from_list([
        {Node, mesh_relay:start(maps:get(Node, Ports), rand:uniform(1_000_000_000))}
     || Node <- [relayed, shaky, listener]
    ]),
    Peopled#{relays := Relays}.

start_peer(Node, #{dir := Dir, peers := Peers, ports := Ports} = Chaos) ->
    Place =
        case {Node, Ports} of
            {_, #{Node := Port}} -> ["--port", integer_to_list(Port)];
            {named_too, #{named := Port}} -> ["--port", integer_to_list(Port)];
            {_, _} -> []
        end,
    Ip = ["--address", inet:ntoa(ip(Node))],
    %% Each has another self-signed identity: who comes back is a stranger at the same address.
    Peer = mesh_peer:start(Place ++ Ip ++ ["--log", log(Dir, Node), "--bidi-streams", "64"]),
    Chaos#{peers := Peers#{Node => Peer}, ports := Ports#{Node => mesh_peer:port(Peer)}}.

ip(named_too) -> {127, 0, 0, 2};
ip(_Node) -> {127, 0, 0, 1}.

log(Dir, Node) -> filename:join(Dir, atom_to_list(Node) ++ ".log").

%% Where callers send: node id and address.
targets(#{relays := Relays, ports := Ports}) ->
    Direct = [{id(Node), {{127, 0, 0, 1}, maps:get(Node, Ports)}} || Node <- [mortal, other]],
    Relayed = [{id(Node), mesh_relay:address(Relay)} || {Node, Relay} <- maps:to_list(Relays)],
    Named = [{id(named), {?NAME, Port}} || #{named := Port} <- [Ports]],
    Direct ++ Relayed ++ Named.

id(Node) -> atom_to_binary(Node).

%% In place and of one length: a look-up that found the file cut short would ask the name server.
name_is(Ip, Hosts) ->
    Text = io_lib:format("127.0.0.1 localhost\n~-15s ~s\n", [inet:ntoa(Ip), ?NAME]),
    {ok, File} = file:open(Hosts, [read, write]),
    ok = file:pwrite(File, 0, Text),
    file:close(File).

%%% A storm of `Ms', and the calm after it

%% `calm': no faults; `faults'; `deaths': the server is killed, too, and so the account is open.
act({Kind, Ms}, #{vm := Vm, number := First} = Chaos) ->
    ok = mesh_vm:call(Vm, start_pool, [?OPTIONS]),
    ok = peer:call(Vm, mesh_callers, start, [targets(Chaos), ?CALLERS, First], ?CALL_MS),
    Struck = restore(play(plan(Kind, Ms, Chaos), Chaos, now_ms())),
    Report = peer:call(Vm, mesh_callers, stop, [], ?CALL_MS),
    mesh_load:eventually(0, fun() -> stat(Vm, outstanding_messages) end),
    assert_report(Kind, Vm, Report),
    Judged = assert_evidence(Report, Struck),
    ok = mesh_vm:call(Vm, stop_pool, []),
    assert_nothing_left(Judged#{number := maps:get(next, Report)}).

%% What happens when: each fault has an end, in time for the calm.
plan(calm, Ms, _Chaos) ->
    [{Ms, nothing}];
plan(Kind, Ms, #{faults := Known}) ->
    Faults = [kill_server || Kind =:= deaths] ++ Known,
    Times = lists:seq(?PACE_MS, Ms - ?PACE_MS, ?PACE_MS),
    Strikes = [strikes(pick(Faults), Time, Ms) || Time <- Times],
    Plan = lists:keysort(1, [{Ms, nothing} | lists:append(Strikes)]),
    ct:log("the plan: ~p", [Plan]),
    Plan.

faults(HasNames) ->
    [die, stand_still, line, partition, rebind, certificate, kill_caller, descriptors, suspend] ++
        [name || HasNames].

strikes(die, Time, Ms) ->
    Node = pick([mortal, other]),
    [{Time, {kill, Node}}, {until(Time, Ms), {revive, Node}}];
strikes(stand_still, Time, Ms) ->
    Node = pick([relayed, shaky]),
    [{Time, {stop, Node}}, {until(Time, Ms), {continue, Node}}];
strikes(line, Time, Ms) ->
    Node = pick([relayed, shaky, listener]),
    Faults = pick([
        #{loss => 150},
        #{delay => 20, jitter => 40},
        #{reorder => 200},
        #{duplicate => 200},
        #{corrupt => 50},
        #{mtu => 1_250}
    ]),
    [{Time, {line, Node, pick([up, down, both]), Faults}}, {until(Time, Ms), {clear, Node}}];
strikes(partition, Time, Ms) ->
    Node = pick([relayed, shaky, listener]),
    Dark = #{blackout => true},
    [{Time, {line, Node, pick([up, down, both]), Dark}}, {until(Time, Ms), {clear, Node}}];
strikes(rebind, Time, _Ms) ->
    [{Time, {rebind, pick([relayed, shaky, listener])}}];
strikes(name, Time, _Ms) ->
    %% Nobody is at the last one.
    [{Time, {name, pick([{127, 0, 0, 1}, {127, 0, 0, 2}, {127, 0, 0, 3}])}}];
strikes(descriptors, Time, Ms) ->
    [{Time, no_descriptors}, {until(Time, Ms), descriptors}];
strikes(suspend, Time, _Ms) ->
    [{Time, {suspend, rand:uniform(800)}}];
strikes(Fault, Time, _Ms) ->
    [{Time, Fault}].

until(Time, Ms) -> min(Time + 200 + rand:uniform(3_000), Ms).

play([], Chaos, _Start) ->
    Chaos;
play([{Time, Strike} | Plan], Chaos, Start) ->
    %% The plan's time is the claim: this is no wait for anything.
    timer:sleep(max(0, Start + Time - now_ms())),
    play(Plan, strike(Strike, Chaos), Start).

strike({kill, Node}, #{peers := Peers} = Chaos) ->
    case Peers of
        #{Node := Peer} ->
            ok = mesh_peer:kill(Peer),
            ended(Node, Chaos#{peers := maps:remove(Node, Peers)});
        #{} ->
            Chaos
    end;
strike({revive, Node}, #{peers := Peers} = Chaos) ->
    case Peers of
        #{Node := _} -> Chaos;
        #{} -> start_peer(Node, Chaos)
    end;
strike({stop, Node}, #{peers := Peers} = Chaos) ->
    ok = mesh_load:pause(maps:get(Node, Peers)),
    ended(Node, Chaos);
strike({continue, Node}, #{peers := Peers} = Chaos) ->
    ok = mesh_load:resume(maps:get(Node, Peers)),
    Chaos;
strike({line, Node, Way, Faults}, #{relays := Relays} = Chaos) ->
    ok = mesh_relay:set(maps:get(Node, Relays), Way, Faults),
    Chaos;
strike({clear, Node}, #{relays := Relays} = Chaos) ->
    ok = mesh_relay:clear(maps:get(Node, Relays)),
    Chaos;
strike({rebind, Node}, #{relays := Relays} = Chaos) ->
    _ = mesh_relay:rebind(maps:get(Node, Relays)),
    Chaos;
strike({name, Ip}, #{hosts := Hosts} = Chaos) ->
    ok = name_is(Ip, Hosts),
    Chaos;
strike(certificate, #{dir := Dir, listener := Listener} = Chaos) ->
    _ = quic_certs:self_signed(filename:join(Dir, "listener")),
    ?assertEqual(ok, peer:call(Listener, mesh_callers, renew, [], ?CALL_MS)),
    Chaos;
strike(kill_caller, #{vm := Vm} = Chaos) ->
    ok = peer:call(Vm, mesh_callers, kill, [], ?CALL_MS),
    Chaos;
strike(kill_server, #{vm := Vm} = Chaos) ->
    ok = mesh_vm:call(Vm, kill_server, []),
    Chaos;
strike(no_descriptors, #{vm := Vm} = Chaos) ->
    #{fds := Descriptors} = mesh_vm:footprint(Vm),
    limit_descriptors(Vm, integer_to_list(Descriptors)),
    Chaos;
strike(descriptors, #{vm := Vm} = Chaos) ->
    limit_descriptors(Vm, "1024"),
    Chaos;
strike({suspend, Ms}, #{vm := Vm} = Chaos) ->
    %% What a machine that sleeps looks like from within: the clocks go on. Nothing else strikes
    %% meanwhile, since a VM that stands still does not answer.
    ok = signal("STOP", Vm),
    timer:sleep(Ms),
    ok = signal("CONT", Vm),
    Chaos;
strike(nothing, Chaos) ->
    Chaos.

%% Ends every fault; the plan has done so too, but for those that were cut short.
restore(#{peers := Peers, relays := Relays} = Chaos) ->
    lists:foreach(fun mesh_relay:clear/1, maps:values(Relays)),
    lists:foreach(fun mesh_load:resume/1, maps:values(Peers)),
    Strikes = [descriptors, {name, {127, 0, 0, 1}}, {revive, mortal}, {revive, other}],
    lists:foldl(fun strike/2, Chaos, Strikes).

ended(Node, #{ends := Ends} = Chaos) ->
    Chaos#{ends := [{id(Node), erlang:system_time(millisecond)} | Ends]}.

limit_descriptors(Vm, Soft) ->
    Command = io_lib:format("prlimit --pid ~s --nofile=~s:", [mesh_vm:os_pid(Vm), Soft]),
    ?assertEqual("", os:cmd(lists:flatten(Command))).

signal(Name, Vm) ->
    _ = os:cmd(io_lib:format("kill -~s ~s", [Name, mesh_vm:os_pid(Vm)])),
    ok.

%%% What must be true

assert_report(Kind, Vm, #{given := Given, largest := Largest, ends := Ends}) ->
    ?assertEqual([normal], Ends),
    ?assert(Largest =< ?LIMIT),
    %% Of a server that was killed nobody knows the figures.
    Kind =:= deaths orelse
        mesh_load:eventually({Given, 0}, fun() ->
            {ok, Stats} = mesh_vm:call(Vm, get_stats, [?POOL]),
            {accounted(Stats), maps:get(panics, Stats)}
        end).

accounted(Stats) ->
    #{
        messages_delivered := Delivered,
        messages_dropped := Dropped,
        messages_unconfirmed := Unconfirmed
    } = Stats,
    Delivered + lists:sum(maps:values(Dropped)) + Unconfirmed.

%% What was confirmed arrived, though it may be read a little later; nothing did twice or damaged.
assert_evidence(#{confirmed := Confirmed, given := Given}, Chaos) ->
    mesh_load:eventually([], fun() -> missing(Confirmed, Chaos) end),
    Lines = arrived(Chaos),
    ?assertNot(lists:member(<<"corrupt">>, Lines)),
    ?assertEqual(length(Lines), length(lists:usort(Lines))),
    ct:pal("~b given, ~b confirmed, ~b arrived since the start", [
        Given, length(Confirmed), length(Lines)
    ]),
    Chaos.

missing(Confirmed, #{ends := Ends} = Chaos) ->
    Arrived = sets:from_list(arrived(Chaos), [{version, 2}]),
    [
        {Number, Node}
     || {Number, Node, At} <- Confirmed,
        not sets:is_element(integer_to_binary(Number), Arrived),
        not lists:any(fun({Of, End}) -> Of =:= Node andalso abs(At - End) < ?GRACE_MS end, Ends)
    ].

arrived(#{dir := Dir}) ->
    Nodes = [mortal, other, relayed, shaky, named, named_too, listener],
    lists:append([lines(log(Dir, Node)) || Node <- Nodes]).

lines(File) ->
    case file:read_file(File) of
        {ok, Text} -> binary:split(Text, <<"\n">>, [global, trim_all]);
        {error, enoent} -> []
    end.

%% The first act shows what the VM has when it is warm; after the others, it has no more.
assert_nothing_left(#{vm := Vm, base := none} = Chaos) ->
    mesh_load:eventually(0, fun() -> maps:get(tasks, remains(Vm)) end),
    Chaos#{base := (remains(Vm))#{tasks := 0}, memory => mesh_vm:memory_kib(Vm)};
assert_nothing_left(#{vm := Vm, base := Base, memory := Before} = Chaos) ->
    mesh_load:eventually(#{}, fun() -> mesh_vm:grown(remains(Vm), Base) end),
    After = mesh_vm:memory_kib(Vm),
    ct:pal("RSS ~b KiB, ~b at first", [After, Before]),
    ?assert(After < Before + ?MEMORY_KIB),
    Chaos.

%% Once a pool of its own stands beside it, the runtime tells its tasks.
remains(Vm) ->
    ok = mesh_vm:call(Vm, start_pool, [?OPTIONS]),
    Tasks = stat(Vm, runtime_tasks),
    ok = mesh_vm:call(Vm, stop_pool, []),
    (mesh_vm:footprint(Vm))#{tasks => Tasks}.

stat(Vm, Key) ->
    {ok, #{Key := Value}} = mesh_vm:call(Vm, get_stats, [?POOL]),
    Value.

pick(List) -> lists:nth(rand:uniform(length(List)), List).

now_ms() -> erlang:monotonic_time(millisecond).
