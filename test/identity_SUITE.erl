%%% Who may talk to whom: every way in which the other side can fail to prove who it is ends in its
%%% own error, before anything is said to it. Certificates are made with openssl, once per suite.
-module(identity_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(WAIT_MS, 10_000).
-define(LOOPBACK, {127, 0, 0, 1}).
-define(POOL, macula_gateway_mesh).
%% The code for who holds the wrong key: TLS alert access_denied as QUIC would carry it.
-define(IMPOSTOR, 16#131).

suite() -> [{timetrap, {seconds, 60}}].

all() ->
    [
        a_server_of_our_authority_is_believed,
        a_server_that_fails_is_refused_with_its_own_reason,
        an_address_is_a_name_too,
        the_name_to_check_can_be_another,
        the_name_check_can_be_left_out,
        depth_bounds_the_chain,
        the_system_s_authorities_do_not_know_ours,
        without_verify_anybody_is_believed,
        a_certain_key_is_believed_and_no_other,
        a_listener_asks_for_certificates_of_its_authority,
        a_listener_asks_for_a_certain_key,
        a_listener_asks_for_a_key_of_a_kind,
        production_means_peer_for_connect,
        production_means_peer_for_the_pool,
        who_says_none_gets_none_in_production,
        a_pool_verifies_by_authority,
        a_pool_proves_the_hash_of_the_key_that_is_the_node_id,
        a_pool_proves_the_ed25519_key_that_is_the_node_id,
        an_impostor_gets_no_message_of_the_pool,
        a_server_without_its_certificates_key_is_refused_in_every_mode,
        a_node_without_its_certificates_key_gets_nothing_of_the_pool,
        a_client_without_its_certificates_key_is_refused,
        a_pool_that_verifies_nobody_warns_once,
        a_bad_verify_of_a_pool_is_told
    ].

init_per_suite(Config) ->
    Dir = proplists:get_value(priv_dir, Config),
    Ours = quic_certs:authority(filename:join(Dir, "ours")),
    Theirs = quic_certs:authority(filename:join(Dir, "theirs")),
    %% Of the same name, but with a key of its own.
    False = quic_certs:authority(filename:join([Dir, "false", "ours"])),
    Good = quic_certs:issue(Ours, "good", #{}),
    {GoodCert, GoodKey} = Good,
    Forged = filename:join(Dir, "forged.pem"),
    ok = quic_certs:forge(GoodCert, Forged),
    Certs = #{
        good => Good,
        other => quic_certs:issue(Ours, "other", #{}),
        expired => quic_certs:issue(Ours, "expired", #{
            from => "20200101000000Z", to => "20210101000000Z"
        }),
        not_valid_yet => quic_certs:issue(Ours, "early", #{
            from => "20480101000000Z", to => "20490101000000Z"
        }),
        wrong_name => quic_certs:issue(Ours, "elsewhere", #{names => "DNS:elsewhere.example"}),
        wrong_purpose => quic_certs:issue(Ours, "purpose", #{purpose => "codeSigning"}),
        stranger => quic_certs:issue(Theirs, "stranger", #{}),
        self_signed => quic_certs:self_signed(filename:join(Dir, "alone")),
        ed25519 => quic_certs:self_signed(filename:join(Dir, "edwards"), ed25519),
        forged => {Forged, GoodKey},
        authority => {filename:join(Ours, "ca.pem"), filename:join(Ours, "ca.key")},
        false_authority => quic_certs:issue(False, "false", #{})
    },
    [{ca, filename:join(Ours, "ca.pem")}, {their_ca, filename:join(Theirs, "ca.pem")} | Config] ++
        maps:to_list(Certs).

end_per_suite(_Config) -> ok.

init_per_testcase(_Name, Config) ->
    ok = quic_ct:begin_test(),
    Config.

end_per_testcase(_Name, _Config) ->
    ok = mesh_ct:stop_logging(),
    case whereis(?POOL) of
        undefined -> ok;
        Pool -> ?POOL:stop(Pool)
    end.

%%% The server proves itself

%% The usual production set-up.
a_server_of_our_authority_is_believed(Config) ->
    Listener = listen(good, [], Config),
    [
        ?assertMatch({ok, _}, dial(Host, Listener, by_ca(Config)))
     || Host <- ["localhost", ?LOOPBACK]
    ].

%% Whoever reads the log knows what to mend, and who fails learns nothing from us.
a_server_that_fails_is_refused_with_its_own_reason(Config) ->
    [
        begin
            Listener = listen(Name, [], Config),
            Expected = {error, {unverified, Why}},
            ?assertEqual({Name, Expected}, {Name, dial("localhost", Listener, by_ca(Config))}),
            mesh_wait:eventually({0, #{handshake_failed => 1}}, fun() ->
                #{connections := Left, refused := Refused} = macula_quic:listener_stats(Listener),
                {Left, Refused}
            end),
            ?assertEqual({error, timeout}, macula_quic:accept(Listener, 0))
        end
     || {Name, Why} <- [
            {expired, expired},
            {not_valid_yet, not_valid_yet},
            {wrong_name, wrong_name},
            {wrong_purpose, wrong_purpose},
            {stranger, unknown_issuer},
            {self_signed, unknown_issuer},
            {forged, bad_signature},
            {false_authority, bad_signature},
            {authority, bad_certificate}
        ]
    ].

%% Peers of the mesh are often known by number.
an_address_is_a_name_too(Config) ->
    Listener = listen(wrong_name, [], Config),
    ?assertEqual({error, {unverified, wrong_name}}, dial(?LOOPBACK, Listener, by_ca(Config))),
    %% This one is neither, and cannot be checked.
    ?assertEqual({error, invalid_server_name}, dial("127.1", Listener, by_ca(Config))).

%% A node behind an address that its certificate does not name.
the_name_to_check_can_be_another(Config) ->
    Listener = listen(wrong_name, [], Config),
    Named = fun(Name) -> [{server_name_indication, Name} | by_ca(Config)] end,
    [
        ?assertMatch({ok, _}, dial(?LOOPBACK, Listener, Named(Name)))
     || Name <- ["elsewhere.example", <<"elsewhere.example">>]
    ],
    ?assertEqual({error, {unverified, wrong_name}}, dial(?LOOPBACK, Listener, Named("nowhere"))),
    ?assertEqual({error, invalid_server_name}, dial(?LOOPBACK, Listener, Named("no name"))).

%% Names are not checked then; all else still is.
the_name_check_can_be_left_out(Config) ->
    Options = [{server_name_indication, disable} | by_ca(Config)],
    [
        ?assertMatch({ok, _}, dial(Host, listen(wrong_name, [], Config), Options))
     || Host <- [?LOOPBACK, "127.1"]
    ],
    [
        ?assertEqual(
            {error, {unverified, Why}}, dial(?LOOPBACK, listen(Name, [], Config), Options)
        )
     || {Name, Why} <- [{expired, expired}, {stranger, unknown_issuer}, {forged, bad_signature}]
    ].

%% Long chains cost the one who checks them.
depth_bounds_the_chain(Config) ->
    {Cert, Key} = proplists:get_value(good, Config),
    {ok, Leaf} = file:read_file(Cert),
    {ok, Ca} = file:read_file(proplists:get_value(ca, Config)),
    Chain = Cert ++ ".chain",
    ok = file:write_file(Chain, [Leaf, Ca]),
    {ok, Listener} = macula_quic:listen({?LOOPBACK, 0}, [{certfile, Chain}, {keyfile, Key}]),
    Deep = fun(Depth) -> dial("localhost", Listener, [{depth, Depth} | by_ca(Config)]) end,
    ?assertMatch({ok, _}, Deep(1)),
    ?assertEqual({error, {unverified, unknown_issuer}}, Deep(0)).

%% Without a CA file, the system's own decide.
the_system_s_authorities_do_not_know_ours(Config) ->
    Listener = listen(good, [], Config),
    [
        ?assertEqual(
            {error, {unverified, unknown_issuer}}, dial("localhost", Listener, [{verify, Verify}])
        )
     || Verify <- [peer, verify_peer]
    ].

%% As nodes in the field do it, until they are told otherwise.
without_verify_anybody_is_believed(Config) ->
    Listener = listen(expired, [], Config),
    [
        ?assertMatch({ok, _}, dial("localhost", Listener, Options))
     || Options <- [[], [{verify, none}], [{verify, verify_none}]]
    ].

%% Pinning: no authority needed, and none can help an impostor.
a_certain_key_is_believed_and_no_other(Config) ->
    {Cert, _} = proplists:get_value(self_signed, Config),
    Pin = [{verify, {spki_sha256, quic_certs:spki(Cert)}}],
    ?assertMatch({ok, _}, dial("localhost", listen(self_signed, [], Config), Pin)),
    Impostor = listen(other, [], Config),
    ?assertEqual({error, {unverified, wrong_key}}, dial("localhost", Impostor, Pin)),
    %% It has been told nothing: TLS was passed, and then only the reason of the refusal came.
    {ok, Server} = macula_quic:accept(Impostor, ?WAIT_MS),
    ?assertEqual({error, closed}, macula_quic:accept_stream(Server, ?WAIT_MS)),
    ?assertEqual({shutdown, ?IMPOSTOR}, quic_ct:next(Server)),
    %% No node id is known of who is dialled by address alone.
    NodeId = [{verify, {node_id, spki_sha256}}],
    ?assertEqual(
        {error, {unverified, wrong_key}}, dial("localhost", listen(good, [], Config), NodeId)
    ).

%%% The client proves itself

%% A listener for members only. TLS 1.3 lets a client begin before it is judged: it learns of the
%% refusal a little later, but nothing that it sends gets in.
a_listener_asks_for_certificates_of_its_authority(Config) ->
    Listener = listen(good, by_ca(Config), Config),
    Identity = identity_seen_by(Listener, shown(other, Config)),
    {Cert, _} = proplists:get_value(other, Config),
    ?assertEqual(
        #{
            certificate => quic_certs:der(Cert),
            spki_sha256 => quic_certs:spki(Cert),
            ed25519 => undefined
        },
        Identity
    ),
    [
        ?assertMatch({Name, {tls_alert, Alert}}, {Name, refusal(Listener, shown(Name, Config))})
     || {Name, Alert} <- [
            {nothing, 116},
            {expired, 45},
            {stranger, 48},
            {self_signed, 48}
        ]
    ],
    ?assertMatch({tls_alert, _}, refusal(Listener, shown(not_valid_yet, Config))),
    ?assertMatch({tls_alert, _}, refusal(Listener, shown(wrong_purpose, Config))),
    ?assertMatch({tls_alert, _}, refusal(Listener, shown(forged, Config))),
    await_refused(#{handshake_failed => 7}, Listener),
    ?assertEqual({error, timeout}, macula_quic:accept(Listener, 0)).

%% Two nodes that know each other's key need no authority.
a_listener_asks_for_a_certain_key(Config) ->
    {Cert, _} = proplists:get_value(self_signed, Config),
    Hash = quic_certs:spki(Cert),
    Listener = listen(good, [{verify, {spki_sha256, Hash}}], Config),
    ?assertMatch(
        #{spki_sha256 := Hash}, identity_seen_by(Listener, shown(self_signed, Config))
    ),
    ?assertEqual({tls_alert, 116}, refusal(Listener, shown(nothing, Config))),
    ?assertEqual({closed_by_peer, ?IMPOSTOR}, refusal(Listener, shown(other, Config))),
    await_refused(#{handshake_failed => 1, wrong_key => 1}, Listener),
    ?assertEqual({error, timeout}, macula_quic:accept(Listener, 0)).

%% A mesh of many nodes: which one it is, the key says.
a_listener_asks_for_a_key_of_a_kind(Config) ->
    Listener = listen(good, [{verify, {node_id, ed25519}}], Config),
    {Cert, _} = proplists:get_value(ed25519, Config),
    Key = quic_certs:ed25519(Cert),
    ?assertMatch(#{ed25519 := Key}, identity_seen_by(Listener, shown(ed25519, Config))),
    ?assertEqual({closed_by_peer, ?IMPOSTOR}, refusal(Listener, shown(other, Config))),
    Any = listen(good, [{verify, {node_id, spki_sha256}}], Config),
    ?assertMatch(#{ed25519 := Key}, identity_seen_by(Any, shown(ed25519, Config))),
    ?assertEqual({tls_alert, 116}, refusal(Any, shown(nothing, Config))).

%%% The platform's configuration

%% An operator who has set the variable must not be left unprotected by an old caller.
production_means_peer_for_connect(Config) ->
    Good = listen(good, [], Config),
    Named = listen(wrong_name, [], Config),
    Stranger = listen(stranger, [], Config),
    true = os:putenv("MACULA_TLS_MODE", "development"),
    ?assertMatch({ok, _}, dial("localhost", Stranger, [])),
    true = os:putenv("MACULA_TLS_MODE", "production"),
    ?assertEqual({error, {unverified, unknown_issuer}}, dial("localhost", Good, [])),
    true = os:putenv("MACULA_TLS_CACERTFILE", proplists:get_value(ca, Config)),
    ?assertMatch({ok, _}, dial("localhost", Good, [])),
    ?assertEqual({error, {unverified, unknown_issuer}}, dial("localhost", Stranger, [])),
    ?assertEqual({error, {unverified, wrong_name}}, dial("localhost", Named, [])),
    %% The caller's own CA file counts more.
    Theirs = [{cacertfile, proplists:get_value(their_ca, Config)}],
    ?assertMatch({ok, _}, dial("localhost", Stranger, Theirs)),
    true = os:putenv("MACULA_TLS_VERIFY_HOSTNAME", "false"),
    ?assertMatch({ok, _}, dial("localhost", Named, [])),
    ?assertEqual({error, {unverified, unknown_issuer}}, dial("localhost", Stranger, [])),
    true = os:putenv("MACULA_TLS_VERIFY_HOSTNAME", "true"),
    ?assertEqual({error, {unverified, wrong_name}}, dial("localhost", Named, [])),
    true = os:putenv("MACULA_TLS_CACERTFILE", "/nonexistent"),
    ?assertEqual(
        {error, {bad_certificate, <<"/nonexistent">>, enoent}}, dial("localhost", Good, [])
    ).

%% The same for the pool, whose options come from an old supervisor.
production_means_peer_for_the_pool(Config) ->
    true = os:putenv("MACULA_TLS_MODE", "production"),
    true = os:putenv("MACULA_TLS_CACERTFILE", proplists:get_value(ca, Config)),
    [Good, Named, Stranger] = [listen(N, [], Config) || N <- [good, wrong_name, stranger]],
    Failed = fun(Why) -> {error, {connect_failed, {unverified, Why}}} end,
    with_pool(#{cacertfile => undefined}, fun(Pool) ->
        ?assertMatch({ok, _}, pooled(Pool, <<1:256>>, Good)),
        ?assertEqual(Failed(wrong_name), pooled(Pool, <<2:256>>, Named)),
        ?assertEqual(Failed(unknown_issuer), pooled(Pool, <<3:256>>, Stranger)),
        {ok, #{dial_failures := Failures}} = ?POOL:get_stats(Pool),
        ?assertEqual(#{unverified => 2}, Failures)
    end),
    true = os:putenv("MACULA_TLS_VERIFY_HOSTNAME", "false"),
    with_pool(#{}, fun(Pool) -> ?assertMatch({ok, _}, pooled(Pool, <<2:256>>, Named)) end).

%% Said on purpose.
who_says_none_gets_none_in_production(Config) ->
    true = os:putenv("MACULA_TLS_MODE", "production"),
    Stranger = listen(stranger, [], Config),
    ?assertMatch({ok, _}, dial("localhost", Stranger, [{verify, none}])),
    with_pool(#{verify => none}, fun(Pool) ->
        ?assertMatch({ok, _}, pooled(Pool, <<1:256>>, Stranger))
    end).

%%% The pool

%% By options instead of variables.
a_pool_verifies_by_authority(Config) ->
    Ca = proplists:get_value(ca, Config),
    %% A name that is no UTF-8.
    Latin1 = filename:join(proplists:get_value(priv_dir, Config), <<"ca-", 16#e9>>),
    {ok, _} = file:copy(Ca, Latin1),
    [Good, Named] = [listen(Name, [], Config) || Name <- [good, wrong_name]],
    [
        with_pool(#{verify => peer, cacertfile => File}, fun(Pool) ->
            ?assertMatch({ok, _}, pooled(Pool, <<1:256>>, Good)),
            ?assertEqual(
                {error, {connect_failed, {unverified, wrong_name}}},
                pooled(Pool, <<2:256>>, Named)
            )
        end)
     || File <- [Ca, list_to_binary(Ca), Latin1]
    ],
    with_pool(#{verify => peer, cacertfile => Ca, verify_hostname => false}, fun(Pool) ->
        ?assertMatch({ok, _}, pooled(Pool, <<2:256>>, Named))
    end).

%% A connection pooled under a node id really is that node.
a_pool_proves_the_hash_of_the_key_that_is_the_node_id(Config) ->
    {Cert, _} = Files = proplists:get_value(self_signed, Config),
    prove_node_id(spki_sha256, quic_certs:spki(Cert), Files, proplists:get_value(other, Config)).

%% The same where the node id is the key itself.
a_pool_proves_the_ed25519_key_that_is_the_node_id(Config) ->
    {Cert, _} = Files = proplists:get_value(ed25519, Config),
    prove_node_id(ed25519, quic_certs:ed25519(Cert), Files, proplists:get_value(other, Config)).

prove_node_id(Rule, NodeId, Files, OtherFiles) ->
    [Peer, Impostor] = [peer(F) || F <- [Files, OtherFiles]],
    with_pool(#{verify => {node_id, Rule}}, fun(Pool) ->
        Get = fun(Id, P) -> ?POOL:get_or_create_connection(Pool, Id, mesh_peer:address(P)) end,
        Wrong = {error, {connect_failed, {unverified, wrong_key}}},
        ?assertEqual(Wrong, Get(NodeId, Impostor)),
        ?assertEqual(Wrong, Get(<<0:256>>, Peer)),
        ?assertEqual(Wrong, Get(<<>>, Peer)),
        {ok, Stream} = Get(NodeId, Peer),
        ok = macula_quic:send(Stream, mesh_peer:frame(1, 8)),
        ?assertMatch(#{messages := 1}, mesh_peer:wait(Peer, messages, 1))
    end),
    ?assertMatch(#{streams := 0, uni_streams := 0, messages := 0}, mesh_peer:stats(Impostor)),
    [ok = mesh_peer:stop(P) || P <- [Peer, Impostor]].

%% What was queued while the dial was under way is for the node, not for who answers in its place.
an_impostor_gets_no_message_of_the_pool(Config) ->
    {Cert, _} = proplists:get_value(self_signed, Config),
    Impostor = peer(proplists:get_value(other, Config)),
    with_pool(#{verify => {spki_sha256, quic_certs:spki(Cert)}}, fun(Pool) ->
        Address = mesh_peer:address(Impostor),
        [ok = ?POOL:send_async(Pool, <<1:256>>, Address, mesh_peer:frame(N, 8)) || N <- [1, 2, 3]],
        mesh_wait:eventually(#{unverified => 3}, fun() -> mesh_ct:stat(messages_dropped) end)
    end),
    ?assertMatch(
        #{streams := 0, uni_streams := 0, close_codes := #{?IMPOSTOR := 1}},
        mesh_peer:wait(Impostor, connections_closed, 1)
    ),
    ok = mesh_peer:stop(Impostor).

%%% Certificates are no secret: whoever has seen one can show it

%% The handshake's signature proves the key. It is checked also where nothing else is.
a_server_without_its_certificates_key_is_refused_in_every_mode(Config) ->
    [
        begin
            {Address, Port} = mesh_peer:address(Peer),
            ?assertEqual(
                {Verify, {error, {unverified, key_not_proven}}},
                {Verify, macula_quic:connect(Address, Port, Verify, ?WAIT_MS)}
            ),
            ?assertMatch(
                #{handshakes_refused := 1, connections_opened := 0, streams := 0},
                mesh_peer:wait(Peer, handshakes_refused, 1)
            ),
            ok = mesh_peer:stop(Peer)
        end
     || Impostor <- impostors(Config),
        Verify <- modes(Config) ++ [[{verify, {node_id, spki_sha256}}]],
        Peer <- [mesh_peer:start(Impostor)]
    ].

%% The same for the pool, where the certificate is even that of the node that was meant.
a_node_without_its_certificates_key_gets_nothing_of_the_pool(Config) ->
    {Cert, _} = proplists:get_value(good, Config),
    NodeId = quic_certs:spki(Cert),
    Modes = [maps:from_list(Options) || Options <- modes(Config)],
    [
        with_pool(Options#{verify_hostname => true}, fun(Pool) ->
            Peer = mesh_peer:start(Impostor),
            Address = mesh_peer:address(Peer),
            ?assertEqual(
                {error, {connect_failed, {unverified, key_not_proven}}},
                ?POOL:get_or_create_connection(Pool, NodeId, Address)
            ),
            ok = ?POOL:send_async(Pool, NodeId, Address, mesh_peer:frame(1, 8)),
            mesh_wait:eventually(#{unverified => 1}, fun() -> mesh_ct:stat(messages_dropped) end),
            ?assertMatch(#{connections_opened := 0, messages := 0}, mesh_peer:stats(Peer)),
            ok = mesh_peer:stop(Peer)
        end)
     || Impostor <- impostors(Config),
        Options <- Modes ++ [#{verify => {node_id, spki_sha256}}]
    ].

%% Program arguments of a peer that shows another's certificate and signs with its own key, and of
%% one that writes nonsense in place of a signature.
impostors(Config) ->
    {Cert, Key} = proplists:get_value(good, Config),
    {_, OtherKey} = proplists:get_value(other, Config),
    [["--cert", Cert, "--key", OtherKey], ["--cert", Cert, "--key", Key, "--corrupt-signature"]].

%% Every mode that would believe the owner of this certificate.
modes(Config) ->
    {Cert, _} = proplists:get_value(good, Config),
    [[], [{verify, none}], by_ca(Config), [{verify, {spki_sha256, quic_certs:spki(Cert)}}]].

%% The other way round. A client begins before it is judged, but nothing that it sends gets in.
a_client_without_its_certificates_key_is_refused(Config) ->
    {Cert, Key} = proplists:get_value(good, Config),
    [
        begin
            Listener = listen(other, Verify, Config),
            {ok, Listener} = macula_quic:async_accept(Listener, []),
            %% The same client with its key is let in.
            Honest = mesh_attacker:attack(Listener, knock, ["--cert", Cert, "--key", Key]),
            ?assertMatch(#{connected := 1, ended := none}, Honest),
            _ = new_connection(),
            {ok, Listener} = macula_quic:async_accept(Listener, []),
            [
                %% TLS alert 51, decrypt_error (RFC 8446, section 6.2).
                ?assertMatch(
                    #{ended := {transport, 16#133}}, mesh_attacker:attack(Listener, knock, Impostor)
                )
             || Impostor <- impostors(Config)
            ],
            await_refused(#{handshake_failed => 2}, Listener),
            %% Who had been let in before would have been given in his place.
            {ok, Client} = dial(?LOOPBACK, Listener, shown(good, Config)),
            {ok, {_, Port}} = macula_quic:sockname(Client),
            ?assertMatch({ok, {_, Port}}, macula_quic:peername(new_connection()))
        end
     || Verify <- [V || [{verify, _} | _] = V <- modes(Config), V =/= [{verify, none}]] ++
            [[{verify, {node_id, spki_sha256}}]]
    ].

new_connection() ->
    receive
        {quic, new_conn, Connection, _} -> Connection
    after ?WAIT_MS -> error(not_accepted)
    end.

%% Nobody notices a pool that believes everybody, and nobody reads a log that says it all day.
a_pool_that_verifies_nobody_warns_once(Config) ->
    Listeners = [listen(good, [], Config) || _ <- [1, 2, 3]],
    ok = mesh_ct:start_logging(),
    Dial = fun(Pool) -> [{ok, _} = pooled(Pool, id(L), L) || L <- Listeners] end,
    %% With its first dial, and with no later one.
    DialTwice = fun(Pool) ->
        ?assertEqual([], warnings()),
        _ = Dial(Pool),
        [ok = ?POOL:remove_connection(Pool, id(L)) || L <- Listeners],
        Dial(Pool)
    end,
    Warning = #{msg => "connections of the mesh pool do not verify who answers"},
    [
        begin
            with_pool(Options, DialTwice),
            ?assertEqual(Warnings, warnings())
        end
     || {Options, Warnings} <- [
            {#{}, [Warning]},
            {#{verify => none}, [Warning]},
            {#{verify => peer, cacertfile => proplists:get_value(ca, Config)}, []}
        ]
    ].

%% A misspelt rule must not mean "none".
a_bad_verify_of_a_pool_is_told(_Config) ->
    [
        ?assertEqual({error, {bad_option, verify, Value}}, ?POOL:start_link(#{verify => Value}))
     || Value <- [true, pear, {node_id, rsa}, {spki_sha256, <<1>>}, "peer"]
    ],
    ?assertEqual(
        {error, {bad_certificate, <<"/nonexistent">>, enoent}},
        ?POOL:start_link(#{verify => peer, cacertfile => "/nonexistent"})
    ),
    %% What cannot name a file must not mean the roots of the system.
    [
        ?assertEqual(
            {error, {bad_option, cacertfile, Value}},
            ?POOL:start_link(#{verify => peer, cacertfile => Value})
        )
     || Value <- [1, <<>>, <<"ca", 0>>, binary:copy(<<"a">>, 5_000), [$a, -1]]
    ],
    [
        ?assertEqual(
            {error, {bad_option, verify_hostname, Value}},
            ?POOL:start_link(#{verify => peer, verify_hostname => Value})
        )
     || Value <- [undefined, 1, "true", fasle]
    ].

%%% Internal

warnings() ->
    receive
        {warning, Report} -> [Report | warnings()]
    after 0 -> []
    end.

%% A listener that shows the certificate of this name.
listen(Name, Options, Config) ->
    {ok, Listener} = macula_quic:listen({?LOOPBACK, 0}, shown(Name, Config) ++ Options),
    quic_ct:keep(Listener).

shown(nothing, _Config) ->
    [];
shown(Name, Config) ->
    {Cert, Key} = proplists:get_value(Name, Config),
    [{certfile, Cert}, {keyfile, Key}].

by_ca(Config) -> [{verify, peer}, {cacertfile, proplists:get_value(ca, Config)}].

dial(Host, Listener, Options) ->
    {ok, {_, Port}} = macula_quic:sockname(Listener),
    macula_quic:connect(Host, Port, Options, ?WAIT_MS).

%% A client may hear of its refusal before that is counted.
await_refused(Causes, Listener) ->
    mesh_wait:eventually(Causes, fun() ->
        maps:get(refused, macula_quic:listener_stats(Listener))
    end).

%% How the listener tells its owner who has come.
identity_seen_by(Listener, Options) ->
    {ok, Listener} = macula_quic:async_accept(Listener, []),
    {ok, Client} = dial(?LOOPBACK, Listener, Options),
    receive
        {quic, new_conn, Server, #{identity := Identity}} ->
            {connected, #{identity := Identity}} = quic_ct:next(Server),
            _ = quic_ct:streams(Client, Server),
            Identity
    after ?WAIT_MS -> error(not_accepted)
    end.

%% Why a client was turned away: by the dial, or by how its connection ends.
refusal(Listener, Options) ->
    case dial(?LOOPBACK, Listener, Options) of
        {error, Reason} ->
            Reason;
        {ok, Client} ->
            _ = macula_quic:open_stream(Client),
            {closed, #{status := Reason}} = last(Client),
            Reason
    end.

last(Connection) ->
    case quic_ct:next(Connection) of
        {closed, _} = Closed -> Closed;
        _ -> last(Connection)
    end.

with_pool(Options, Work) ->
    {ok, Pool} = ?POOL:start_link(Options),
    _ = Work(Pool),
    ok = ?POOL:stop(Pool).

pooled(Pool, NodeId, Listener) ->
    {ok, {_, Port}} = macula_quic:sockname(Listener),
    ?POOL:get_or_create_connection(Pool, NodeId, {"localhost", Port}).

id(Listener) ->
    {ok, {_, Port}} = macula_quic:sockname(Listener),
    mesh_peer:node_id(Port).

peer({Cert, Key}) -> mesh_peer:start(["--cert", Cert, "--key", Key]).
